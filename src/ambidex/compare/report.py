"""A verdict in words for a terminal, and as JSON for tools."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from typing import Any

from ambidex.compare.align import DIFFERENT
from ambidex.compare.cards import at
from ambidex.compare.judge import Verdict
from ambidex.compare.stages import Finding
from ambidex.errors import Exit, Problem
from ambidex.escaping import one_line, printable

SCHEMA = 1
STAGES = {
    "data": "in the data of", "weights": "in the first weights of", "forward": "in the forward of",
    "stale": "in a stale value in", "loss": "in", "backward": "in the backward of", "accumulation": "in adding up the gradients of",
    "clip": "in the clipping of", "moments": "in the moments of", "update": "in the update of", "schedule": "in the learning rate of",
}  # fmt: skip
LONGEST_LINE = 600  # characters: a module may have a name of thousands
SHOWN = 6  # lines of a list that a terminal gets


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """2 where a pair cannot be compared, else 1 where one differs, else 0."""
    if any(verdict.same is None for verdict in verdicts):
        return Exit.USAGE
    return Exit.DONE if all(verdict.same for verdict in verdicts) else Exit.DIFFERENT


def text(verdicts: Sequence[Verdict]) -> str:
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    return "\n".join("\n".join(_paragraph(verdict, width)) for verdict in verdicts)


def _paragraph(verdict: Verdict, width: int) -> list[str]:
    """The verdict in one line, and below it why, what inherits it, what was looked at, and what else differs."""
    lines = [
        f"{one_line(verdict.reference.name)} -> {one_line(verdict.run.name)}   "
        f"({one_line(kind(verdict))})   {one_line(headline(verdict), LONGEST_LINE)}"
    ]
    for problem in verdict.problems:
        lines += [f"    {line}" for line in printable(str(problem)).splitlines()]
    for words in reasons(verdict):
        lines += _labelled("why", words, width)
    if verdict.downstream:
        words = f"downstream of it, and no fault of their own: {inherited(verdict, SHOWN)}"
        lines += _labelled("then", words, width)
    for note in verdict.notes:
        lines += _labelled("note", note, width)
    if verdict.modes:
        lines += _labelled("judged", scope(verdict), width)
    if verdict.same and verdict.worst is not None and verdict.worst.ratio > 0:
        lines += _labelled("worst", worst(verdict), width)
    for difference in verdict.cards[:SHOWN]:
        before, after = _short(difference.reference), _short(difference.run)
        lines += _labelled("cards", f"{difference.key}: {before} -> {after} ({difference.matters})", width)
    lines += _more(len(verdict.cards) - SHOWN, "differences between the cards", width)
    if verdict.same and verdict.worst is not None and verdict.worst.ratio == 0:
        return lines  # equal bits need no floor
    for one in verdict.not_judged[:SHOWN]:
        words = f"{one['mode']} mode, step {one['step']}: {one['tensor']}: {one['why']}"
        lines += _labelled("not judged", words, width)
    lines += _more(len(verdict.not_judged) - SHOWN, "that were not judged", width)
    return lines


def headline(verdict: Verdict) -> str:
    """The verdict in a few words."""
    if verdict.same is None:
        return "CANNOT BE COMPARED"
    if verdict.first is not None:
        return f"DIFFERENT at step {verdict.first.step}, {place(verdict.first)}: {times(verdict.first)}"
    if verdict.worst is None:
        return "the same"
    if verdict.worst.ratio == 0:
        return "the same, bit for bit in everything that was recorded"
    return f"the same: worst tensor {verdict.worst.ratio:.2g}x the rounding floor"


def reasons(verdict: Verdict) -> list[str]:
    """Why the part that is named is blamed, and what may not be concluded."""
    found = [verdict.first.words] if verdict.first is not None and verdict.first.words else []
    if verdict.first is not None and verdict.kind == "both":
        found.append("Version and device both changed, so neither can be blamed: a run of the new build on the CPU, "
                     "compared in the middle, tells which.")  # fmt: skip
    return found


def place(first: Finding) -> str:
    module = first.module if first.stage != "loss" else "the loss"
    return f"{STAGES[first.stage]} {module or 'the model'}"


def times(first: Finding) -> str:
    if not math.isfinite(first.ratio) or first.stage in ("data", "weights"):
        return "not the same numbers"
    return f"{many(first.ratio)}x the floor ({first.tensor}, {first.mode} mode)"


def many(ratio: float) -> str:
    """Three figures, written out where that can be read: 1.23, 74.5, 102,000."""
    return f"{float(f'{ratio:.3g}'):,.0f}" if 100 <= ratio < 1e9 else f"{ratio:.3g}"


def kind(verdict: Verdict) -> str:
    """What changed between the two: the version, the device, both or neither."""
    before, after = verdict.reference.card, verdict.run.card
    builds = f"{_short(at(before, 'build.torch'))} -> {_short(at(after, 'build.torch'))}"
    devices = f"{_short(at(before, 'device.name'))} -> {_short(at(after, 'device.name'))}"
    words = {"version": f"version: {builds}", "device": f"device: {devices}", "both": f"version and device: {builds}, {devices}",
             "same": f"same build and device: {_short(at(after, 'build.torch'))}, {_short(at(after, 'device.name'))}"}  # fmt: skip
    return words[verdict.kind]


def inherited(verdict: Verdict, most: int) -> str:
    names = ", ".join(verdict.downstream[:most])
    more = f" and {len(verdict.downstream) - most} more" if len(verdict.downstream) > most else ""
    return f"{names}{more}"


def scope(verdict: Verdict) -> str:
    """How much was judged, and in which modes."""
    modes = {
        "free": "as the runs went (sharp at the first steps only)",
        "state": "from the same state",
        "fed": "fed with the reference's tensors",
    }
    judged = f"{verdict.judged:,} tensors: " + ", ".join(modes[mode] for mode in verdict.modes)
    near = (
        f"; {verdict.near} of them close to their limit: {_more_legs(verdict)} the floor with more legs"
        if verdict.near and verdict.same
        else ""
    )
    return judged + near


def _more_legs(verdict: Verdict) -> str:
    if "data" in verdict.reference.card:
        return "--measure-again 8 measures"
    return "the reference's loop once more as leg=4, 5 and so on measures"


def worst(verdict: Verdict) -> str:
    found = verdict.worst
    assert found is not None
    return f"{found.tensor}, step {found.step}, {found.mode} mode; different begins above {DIFFERENT:g}"


def _more(count: int, words: str, width: int) -> list[str]:
    return (
        _labelled("", f"and {count} more {words} (--json and --html list them)", width) if count > 0 else []
    )


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


def _short(value: Any) -> str:
    shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return one_line(shown if len(shown) <= 60 else shown[:57] + "...")


def _brief(words: str) -> str:
    return words if len(words) <= 3 * LONGEST_LINE else words[: 3 * LONGEST_LINE] + "..."


def _labelled(label: str, words: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(
        printable(_brief(words)), width, initial_indent=f"    {label:<12}", subsequent_indent=" " * 16
    )
