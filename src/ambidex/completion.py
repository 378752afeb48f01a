"""`ambidex completion SHELL`: a script for the shell, made by `shtab` from the commands' own parsers.

The script is static, so completing starts no Python and a command's start pays nothing for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ambidex.errors import Problem, Problems

SHELLS = ("bash", "zsh", "tcsh")  # shtab's own
_FOLDERS = {"run", "runs", "reference", "out", "to", "from_trace", "folder"}
_FILES = {"data", "config", "html", "file"}


def script(shell: str, commands: Mapping[str, tuple[str, argparse.ArgumentParser]]) -> str:
    """The completion script for ``shell``. Raises Problems (exit 2) where there is none, or shtab is missing."""
    if shell not in SHELLS:
        raise Problems(
            Problem("There is no completion for this shell.", found=shell, wanted=", ".join(SHELLS))
        )
    try:
        import shtab
    except ImportError:
        raise Problems(
            Problem(
                "Completion needs the shtab package.",
                found="not installed",
                fix='python -m pip install "ambidex[completion]"',
            )
        ) from None
    root = argparse.ArgumentParser(prog="ambidex")
    room = root.add_subparsers()
    for name, (words, parser) in commands.items():
        for action in parser._actions:
            _say_what_fits(action, shtab)
        room.add_parser(name, parents=[parser], add_help=False, help=words)
    return str(shtab.complete(root, shell=shell))


def _say_what_fits(action: argparse.Action, shtab: Any) -> None:
    if action.dest in _FOLDERS:
        action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    elif action.dest in _FILES:
        action.complete = shtab.FILE  # type: ignore[attr-defined]
    elif action.choices is None and action.option_strings:
        action.choices = _choices(action.dest)


def _choices(setting: str) -> list[str] | None:
    """The words that a setting of `train` may have, where they are few."""
    try:
        from ambidex import config
    except ImportError:
        return None
    if setting == "preset":
        return config.preset_names()
    if setting == "device":
        return ["auto", "cpu", "cuda", "mps"]
    return list(config.choices(setting)) or None if setting in config.fields() else None
