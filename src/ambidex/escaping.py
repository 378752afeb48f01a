"""What came from a run or a file, made harmless where it is shown: in a terminal, on a page, in a line of Markdown,
in a command to type."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable

_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&$])")


def printable(text: str) -> str:
    """Control characters that a terminal would obey, and marks that turn the reading direction, shown as numbers."""
    if text.isprintable():
        return text
    return "".join(c if c in "\n\t" or c.isprintable() else _number(c) for c in text)


def one_line(text: str, longest: int = 200) -> str:
    """The same with line breaks shown too, so that a name cannot pretend to be a line of ours; cut at ``longest``."""
    shown = "".join(c if c.isprintable() else _number(c) for c in text[: longest + 1])
    return shown if len(text) <= longest else shown[:longest] + "..."


def markdown(text: str) -> str:
    """For a heading or a table cell: on one line, and nothing in it is markup."""
    return _MARKDOWN.sub(r"\\\1", one_line(text))


def typed(words: Iterable[str]) -> str:
    """Words as one command line for this system's shell: Windows knows no single quotes."""
    if os.name == "nt":
        from subprocess import list2cmdline

        return list2cmdline(words)
    return shlex.join(words)


def _number(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name that is no UTF-8, as Python brings it
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
