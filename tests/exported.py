"""What the exports are tested with: a text with all kinds of characters, and a model for each tokenizer."""

from __future__ import annotations

from typing import Any

LINES = 'line {} is followed by "{}", as é is by 漢字; don\'t\tlose  spaces , or 🦊\r\n'
KINDS: dict[str, dict[str, Any]] = {
    "byte": {"tokenizer": "byte", "tied": True, "heads": 4, "kv_heads": 2},
    "char": {"tokenizer": "char", "tied": False, "rope_base": 50_000.0, "norm_epsilon": 1e-5},
    "bpe": {"tokenizer": "bpe", "vocabulary_size": 300, "tied": False, "heads": 2, "kv_heads": 2},
}
