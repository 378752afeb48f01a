"""A tokenizer back from its JSON: the one place that knows all the kinds."""

from __future__ import annotations

import json
from pathlib import Path

from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.files import read_small
from ambidex.text.bpe import BpeTokenizer
from ambidex.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

LARGEST = 1 << 28  # bytes; a million tokens take under a tenth of it


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises Problems (exit 3) where there is none."""
    try:
        text = read_small(path, LARGEST).decode()
        data = json.loads(text)
        if data.get("kind") == ByteTokenizer.kind:
            return ByteTokenizer()
        if data.get("kind") == CharTokenizer.kind:
            if not isinstance(data["characters"], str) or not data["characters"]:
                raise ValueError("it has no characters")
            return CharTokenizer(data["characters"])
        return BpeTokenizer.from_json(text)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError, RecursionError) as error:
        found = one_line(str(error) or type(error).__name__)
        raise Problems(Problem(f"{path} is no readable tokenizer", found=found), Exit.DATA) from None
