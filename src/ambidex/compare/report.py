"""A verdict in words for a terminal, and as JSON for tools."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from typing import Any

from ambidex.compare.cards import at
from ambidex.compare.judge import Finding, Verdict
from ambidex.errors import Exit, Problem

SCHEMA = 1
STAGES = {
    "data": "in the data of", "weights": "in the first weights of", "forward": "in the forward of",
    "stale": "in a stale value in", "loss": "in", "backward": "in the backward of", "accumulation": "in adding up the gradients of",
    "clip": "in the clipping of", "moments": "in the moments of", "update": "in the update of", "schedule": "in the learning rate of",
}  # fmt: skip
SHOWN = 6  # lines of a list that a terminal gets


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """2 where a pair cannot be compared, else 1 where one differs, else 0."""
    if any(verdict.same is None for verdict in verdicts):
        return Exit.USAGE
    return Exit.DONE if all(verdict.same for verdict in verdicts) else Exit.DIFFERENT


def text(verdicts: Sequence[Verdict]) -> str:
    width = shutil.get_terminal_size((100, 24)).columns
    return "\n".join("\n".join(_paragraph(verdict, max(60, min(width, 120)))) for verdict in verdicts)


def _paragraph(verdict: Verdict, width: int) -> list[str]:
    start = f"{plain(verdict.reference.name)} -> {plain(verdict.run.name)}   ({_kind(verdict)})   "
    lines = [start + _headline(verdict)]
    if verdict.first is not None:
        lines += _wrapped(verdict.first.words, width) + _inherited(verdict, width)
        if verdict.kind == "both":
            lines += _wrapped(
                "Version and device both changed: a third run, this build on the CPU, would tell which is at fault.",
                width,
            )
    for problem in verdict.problems:
        lines += [f"    {line}" for line in plain(str(problem)).splitlines()]
    for note in verdict.notes:
        lines += _wrapped(note, width)
    if verdict.modes:
        lines += _wrapped(_scope(verdict), width)
    lines += _not_judged(verdict, width)
    lines += [
        f"    {plain(d.key)}: {plain(_short(d.reference))} -> {plain(_short(d.run))} ({d.matters})"
        for d in verdict.cards[:SHOWN]
    ]
    if len(verdict.cards) > SHOWN:
        lines.append(
            f"    and {len(verdict.cards) - SHOWN} more differences between the cards (--json lists them)"
        )
    return lines


def _headline(verdict: Verdict) -> str:
    if verdict.same is None:
        return "CANNOT BE COMPARED"
    if verdict.first is not None:
        return f"DIFFERENT at step {verdict.first.step}, {_place(verdict.first)}: {_times(verdict.first)}"
    if verdict.worst is None:
        return "the same"
    if verdict.worst.ratio == 0:
        return "the same, bit for bit in everything that was recorded"
    return f"the same: worst tensor {verdict.worst.ratio:.2g}x the rounding floor"


def _place(first: Finding) -> str:
    module = first.module if first.stage != "loss" else "the loss"
    return plain(f"{STAGES[first.stage]} {module or 'the model'}")


def _times(first: Finding) -> str:
    if not math.isfinite(first.ratio) or first.stage in ("data", "weights"):
        return "not the same numbers"
    return f"{first.ratio:,.3g}x the floor ({plain(first.tensor)}, {first.mode} mode)"


def _kind(verdict: Verdict) -> str:
    before, after = verdict.reference.card, verdict.run.card
    builds = f"{at(before, 'build.torch')} -> {at(after, 'build.torch')}"
    devices = f"{at(before, 'device.name')} -> {at(after, 'device.name')}"
    words = {"version": f"version: {builds}", "device": f"device: {devices}", "both": f"version and device: {builds}, {devices}",
             "same": f"same build and device: {at(after, 'build.torch')}, {at(after, 'device.name')}"}  # fmt: skip
    return plain(words[verdict.kind])


def _inherited(verdict: Verdict, width: int) -> list[str]:
    if not verdict.downstream:
        return []
    names = ", ".join(verdict.downstream[:SHOWN])
    more = f" and {len(verdict.downstream) - SHOWN} more" if len(verdict.downstream) > SHOWN else ""
    return _wrapped(f"Downstream of it, and no fault of their own: {plain(names)}{more}.", width)


def _scope(verdict: Verdict) -> str:
    modes = {
        "free": "free-running (sharp at the first steps only)",
        "state": "from the same state",
        "fed": "fed with the reference's tensors",
    }
    judged = f"{verdict.judged:,} tensors judged: " + ", ".join(modes[mode] for mode in verdict.modes) + "."
    near = (
        f" {verdict.near} are close to their limit: --measure-again 8 measures the floor with more legs."
        if verdict.near and verdict.same
        else ""
    )
    return judged + near


def _not_judged(verdict: Verdict, width: int) -> list[str]:
    lines: list[str] = []
    for one in verdict.not_judged[:SHOWN]:
        lines += _wrapped(
            f"not judged ({one['mode']}, step {one['step']}): {plain(one['tensor'])}: {one['why']}", width
        )
    if len(verdict.not_judged) > SHOWN:
        lines.append(
            f"    and {len(verdict.not_judged) - SHOWN} more that were not judged (--json lists them)"
        )
    return lines


def as_json(verdicts: Sequence[Verdict]) -> str:
    return json.dumps({"schema": SCHEMA, "exit_code": int(exit_code(verdicts)), "pairs": [_pair(v) for v in verdicts]},
                      indent=2, ensure_ascii=True, allow_nan=False)  # fmt: skip


def _pair(verdict: Verdict) -> dict[str, Any]:
    return {
        "reference": str(verdict.reference.path), "run": str(verdict.run.path), "kind": verdict.kind, "same": verdict.same,
        "modes": verdict.modes, "first": _finding(verdict.first), "downstream": verdict.downstream,
        "not_judged": verdict.not_judged, "cards": [d._asdict() for d in verdict.cards],
        "worst": _finding(verdict.worst), "judged": verdict.judged, "near": verdict.near, "notes": verdict.notes,
        "problems": [_problem(problem) for problem in verdict.problems],
    }  # fmt: skip


def _finding(finding: Finding | None) -> dict[str, Any] | None:
    """A ratio that is infinite (a number against nothing) is written as the largest that JSON's readers all take."""
    if finding is None:
        return None
    ratio = finding.ratio if math.isfinite(finding.ratio) else 1e308
    return {"step": finding.step, "stage": finding.stage, "module": finding.module, "tensor": finding.tensor,
            "mode": finding.mode, "ratio": ratio, "words": finding.words}  # fmt: skip


def _problem(problem: Problem) -> dict[str, str]:
    return {"what": problem.what, "found": problem.found, "wanted": problem.wanted, "fix": problem.fix}


def plain(words: str) -> str:
    """Names come from files that somebody sent: control characters are shown, never obeyed."""
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in words)


def _short(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _wrapped(words: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(words, width, initial_indent="    ", subsequent_indent="    ")
