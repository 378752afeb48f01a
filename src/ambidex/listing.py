"""`ambidex checkpoints`: the checkpoints of a run, each verified byte by byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ambidex import checkpoint, plan, runs
from ambidex.checkpoint import Damaged
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line, printable
from ambidex.resume import settings_of
from ambidex.runs import Run
from ambidex.text import load_tokenizer

SCHEMA = 1


def show(path: Path, as_json: bool) -> int:
    """Print them, oldest first. Returns 0, or 3 where none is good. Raises Problems (exit 3) where there is no run."""
    run = Run(path)
    rows = verified(run)
    good = [row["step"] for row in rows if row["good"]]
    code = Exit.DONE if good else Exit.DATA
    if as_json:
        print(json.dumps({"schema": SCHEMA, "exit_code": int(code), "run": str(path),
                          "newest_good": max(good, default=None), "checkpoints": rows}, indent=1))  # fmt: skip
        return code
    for row in rows:
        marks = " (newest good)" * (row["step"] == max(good, default=None)) + " (best)" * bool(row["best"])
        state = "good" if row["good"] else f"NOT GOOD: {row['problem']}"
        print(printable(f"{row['folder']:<16}{plan.spell_bytes(row['bytes']):>10}   {state}{marks}"))
    if not good:
        raise Problems(
            Problem("The run has no good checkpoint.", found=f"{len(rows)} in {run.checkpoints}",
                    wanted="one whose files are as they were written", fix="train again with another --out"), Exit.DATA,
        )  # fmt: skip
    finished = bool(good) and max(good) >= settings_of(run.card).steps
    print(printable(f"next     {run.command_to_sample() if finished else run.command_to_resume()}"))
    return code


def verified(run: Run) -> list[dict[str, Any]]:
    """Step, size and state of each, oldest first. A checkpoint that training would not load is not good."""
    wanted = plan.tensors_of(settings_of(run.card), load_tokenizer(run.path / runs.TOKENIZER).vocabulary_size)
    rows = []
    best = None
    for step in checkpoint.steps_in(run.checkpoints):
        folder = run.checkpoints / checkpoint.folder_name(step)
        problem = ""
        try:
            state = checkpoint.load(folder, wanted).state
            best = state["best"][1] if state.get("best") else best
        except Damaged as damage:
            problem = one_line(str(damage), 300)
        rows.append(
            {
                "step": step,
                "folder": folder.name,
                "bytes": _size(folder),
                "good": not problem,
                "problem": problem,
            }
        )
    return [{**row, "best": row["step"] == best} for row in rows]


def _size(folder: Path) -> int:
    try:
        return sum(path.lstat().st_size for path in folder.iterdir())
    except OSError:
        return 0
