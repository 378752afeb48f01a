"""Labels in a column of their own, prose wrapped beside them, commands on lines that are never broken."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from ambidex.escaping import printable

WIDTH = 110
_LABEL = 7  # columns before the text
_COLOURS = {"good": "\033[32m", "bad": "\033[31m", "label": "\033[1m", "end": "\033[0m"}


def laid_out(
    rows: Iterable[tuple[str, str]], colour: bool = False, width: int = 0, mood: str = "label"
) -> str:
    """The rows as text, `width` columns wide (0: 110). `mood` colours the first label: good or bad.

    Much of what is said comes from other programs, files and pastes: nothing of it commands the terminal.
    """
    lines: list[str] = []
    for label, text in rows:
        if not text:
            continue
        shown = label.ljust(_LABEL) if len(label) < _LABEL else label + "  "
        first = f"{_COLOURS['label' if lines else mood]}{shown}{_COLOURS['end']}" if colour else shown
        indent = " " * _LABEL
        for number, line in enumerate(_wrapped(printable(text), (width or WIDTH) - _LABEL)):
            lines.append((first if number == 0 else indent) + line)
    return "\n".join(line.rstrip() for line in lines)


def _wrapped(text: str, width: int) -> list[str]:
    lines: list[str] = []
    for paragraph in text.split("\n"):
        if paragraph.startswith("$ "):
            lines.append(paragraph.removeprefix("$ "))
        else:
            lines += textwrap.wrap(paragraph, width, break_long_words=False, break_on_hyphens=False) or [""]
    return lines
