"""`ambidex` alone: what there is, and what to do next on this machine, with the runs that lie here. No torch."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ambidex.cardfile import CARD, read_card
from ambidex.errors import Problems
from ambidex.escaping import one_line, printable, typed
from ambidex.glance import LOCK, is_held

_STEP = re.compile(r"step-(\d{6,12})")


def overview(commands: Mapping[str, str], steps: list[tuple[str, str]]) -> str:
    """The commands, then what to type next: (what to type, why) each."""
    wide = max(map(len, commands)) + 2
    lines = ["ambidex: one transformer trainer for every PyTorch build", "", "commands:"]
    lines += [f"  ambidex {name:<{wide}}{words}" for name, words in commands.items()]
    lines += ["", "next:"]
    wide = max(len(typed) for typed, _ in steps) + 2
    lines += [f"  {typed:<{wide}}{why}" for typed, why in steps]
    return printable("\n".join([*lines, "", "ambidex COMMAND --help says more, with examples"]))


def next_steps(runs: Path) -> list[tuple[str, str]]:
    """What to type next and why: by what is installed, and by the newest run in folder ``runs``."""
    doctor = ("ambidex doctor", "will this PyTorch run on this machine")
    lacking = [name for name in ("torch", "pydantic", "tokenizers") if importlib.util.find_spec(name) is None]
    if lacking:
        return [
            doctor,
            ('python -m pip install "ambidex[train]"', f"for training: {', '.join(lacking)} not installed"),
        ]
    newest = _newest(runs)
    if newest is None:
        return [
            doctor,
            ("ambidex train --dry-run", "the plan: device, size, time"),
            ("ambidex train", "a small transformer on text that is on this machine already"),
        ]
    run, step, config = newest
    steps = config["steps"]
    name = typed([str(run)])
    if is_held(run / LOCK):
        first = (
            f"ambidex top {typed([str(runs)])}",
            f"{one_line(run.name)} is being trained: step {step} of {steps} is saved",
        )
        return [first, (f"ambidex report {name}", "one HTML page for it, now or later")]
    if step < steps:
        first = (
            f"ambidex train --resume --out {name}",
            f"goes on: it has a checkpoint of step {step} of {steps}",
        )
    else:
        first = (f"ambidex sample {name}", f"writes text: all of its {steps} steps are trained")
    export = (
        [(f"ambidex export {name} --to model", "for transformers")] if config.get("ngrams", 1) == 1 else []
    )
    return [first, *export, ("ambidex train", "another run")]


def _newest(runs: Path) -> tuple[Path, int, Mapping[str, Any]] | None:
    """The run whose card was written last and that has a checkpoint, its step and its settings.

    Checkpoints are known by their names alone.
    """
    try:
        folders = [
            path for path in runs.iterdir() if not path.name.startswith(".") and (path / CARD).is_file()
        ]
        dated = sorted(folders, key=lambda path: (path / CARD).stat().st_mtime, reverse=True)
    except OSError:
        return None
    for path in dated:
        try:
            names = [folder.name for folder in (path / "checkpoints").iterdir()]
            found = [int(match[1]) for name in names if (match := _STEP.fullmatch(name))]
            if found:
                config = read_card(path)["config"]
                return path, max(found), {**config, "steps": int(config["steps"])}
        except (OSError, Problems, KeyError, TypeError, ValueError):
            continue
    return None
