"""A tokenizer back from its JSON: the one place that knows all the kinds."""

from __future__ import annotations

import json
from pathlib import Path

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.bpe import BpeTokenizer
from ambidex.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote. Raises Problems (exit 3) where there is none."""
    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text)
        if data.get("kind") == ByteTokenizer.kind:
            return ByteTokenizer()
        if data.get("kind") == CharTokenizer.kind:
            return CharTokenizer(data["characters"])
        return BpeTokenizer.from_json(text)
    except (OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise Problems(Problem(f"{path} is no readable tokenizer", found=str(error)), Exit.DATA) from None
