"""The smallest training that is still the real one: two layers, a few dozen steps, a second or two."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

TINY: dict[str, Any] = {
    "layers": 2, "width": 32, "heads": 2, "kv_heads": 1, "feed_forward": 64, "context": 16, "batch_size": 4,
    "steps": 12, "evaluate_every": 4, "evaluation_tokens": 256, "save_every": 3, "sample_tokens": 8,
    "threads": 1, "validation_fraction": 0.02, "keep": 9, "device": "cpu",
}  # fmt: skip


def flags(**settings: Any) -> list[str]:
    """Settings as they are typed."""
    words: list[str] = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        elif isinstance(value, list | tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def ambidex(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command as a user does, in a process of its own."""
    command = [sys.executable, "-m", "ambidex", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, **options)


def train_words(data: Path, out: Path, **settings: Any) -> list[str]:
    return ["train", *flags(**{**TINY, "data": [str(data)], "out": str(out), **settings})]
