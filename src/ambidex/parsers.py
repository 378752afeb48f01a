"""The words of the command line: every command's name, examples, and a parser that reports like everything else here."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn

from ambidex.errors import Problem, Problems

COMMANDS = {
    "doctor": "will this build run on this machine, why, and what to type",
    "train": "train a model, on the device that works",
    "sample": "write text with a trained model",
    "export": "a trained model as a folder for transformers, or as GGUF",
    "checkpoints": "list a run's checkpoints, and verify every byte of them",
    "bench": "this machine's peak, and how near training comes to it",
    "compare": "are these runs the same, and where do they part",
    "report": "one HTML page for a run",
    "top": "the runs that are trained now, and those that were",
    "presets": "list the presets, or print one to copy and change",
    "variants": "the PyTorch builds that there are, and which fit here",
    "completion": "what lets a shell complete these commands",
}

EXAMPLES = {
    "doctor": (
        "ambidex doctor",
        'ambidex doctor --torch 2.5.1+cu121 --gpu "RTX 5060" --driver 576.02',
        "ambidex doctor explain error.txt",
    ),
    "train": (
        "ambidex train --dry-run",
        "ambidex train --data book.txt --steps 500 --out my-run",
        "ambidex train --resume --out my-run",
    ),
    "sample": ('ambidex sample my-run --prompt "Once" --tokens 400', "ambidex sample my-run --temperature 0"),
    "compare": ("ambidex compare runs/cpu runs/gpu", "ambidex compare runs/cpu runs/bridge runs/gpu --json"),
    "export": ("ambidex export my-run --to model", "ambidex export my-run --format gguf --to model-gguf"),
    "bench": (
        "ambidex bench",
        "ambidex bench --preset 45m --steps 2",
        "ambidex bench --to-loss 1.88 --data book.txt",
    ),
    "checkpoints": ("ambidex checkpoints my-run",),
    "report": ("ambidex report my-run",),
    "top": ("ambidex top", "ambidex top runs"),
    "presets": ("ambidex presets", "ambidex presets mini > mine.toml"),
    "variants": ("ambidex variants",),
    "completion": (
        "ambidex completion bash > ~/.local/share/bash-completion/completions/ambidex",
        "ambidex completion zsh > ~/.zfunc/_ambidex",
    ),
}


class Parser(argparse.ArgumentParser):
    """argparse that reports like everything else here, and shows examples."""

    collecting = False  # a command then stops at its finished parser, which completion reads

    def parse_known_args(self, *words: Any, **named: Any) -> Any:
        if Parser.collecting:
            raise Built(self)
        return super().parse_known_args(*words, **named)

    def format_help(self) -> str:
        examples = EXAMPLES.get(self.prog.removeprefix("ambidex "), ())
        shown = ["", "examples:", *(f"  {example}" for example in examples), ""] if examples else []
        return super().format_help() + "\n".join(shown)

    def error(self, message: str) -> NoReturn:
        joined = "a value that begins with a dash is joined to its flag: --flag=-value; "
        fix = f"{joined if message.endswith('expected one argument') else ''}{self.prog} --help"
        raise Problems(Problem(f"{message[:1].upper()}{message[1:]}.", fix=fix))

    def _get_formatter(self) -> argparse.HelpFormatter:
        """With a width, since without one every flag that is added loads `shutil` and what it brings."""
        try:
            columns = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size().columns
        except (OSError, ValueError):
            columns = 100
        return self.formatter_class(self.prog, width=max(40, columns - 2))  # type: ignore[call-arg]


class Built(Exception):  # noqa: N818  no error
    """A command's parser, ready."""

    def __init__(self, parser: Parser) -> None:
        self.parser = parser


class Wide(argparse.HelpFormatter):
    """Help with room for long flags."""

    def __init__(self, prog: str, width: int | None = None) -> None:
        super().__init__(prog, max_help_position=32, width=width)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """A flag's value may be left out for the parser alone, which lets `config` report it; a reader has to give it."""
        if action.nargs == "?" and action.option_strings:
            return self._metavar_formatter(action, default_metavar)(1)[0]
        return super()._format_args(action, default_metavar)
