"""The learning rates of two runs: of each row that `ambidex train` wrote, and of each step of somebody's own loop."""

from __future__ import annotations

from collections.abc import Sequence

from ambidex.compare.folder import Folder, Row
from ambidex.compare.stages import Finding
from ambidex.compare.tracefile import MOST_RATES

Rates = list[list[float]]  # a step each, by group of parameters
SAME_OWN_RATE = 1e-6  # relative: somebody's own may be kept in fp32
SAME_RATE = 1e-9  # relative: rates are computed in fp64 on the host by the same formula


def shared(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row, Row]]:
    """The steps that both runs have."""
    by_step = {row.step: row for row in after}
    return [(row, by_step[row.step]) for row in before if row.step in by_step]


def of_rows(before: Sequence[Row], after: Sequence[Row]) -> Finding | None:
    for mine, theirs in shared(before, after):
        if abs(mine.rate - theirs.rate) > SAME_RATE * abs(mine.rate):
            return Finding(mine.step - 1, "schedule", "optimizer", "learning rate", "metrics", float("inf"),
                           f"The learning rate is {theirs.rate:.9g} instead of {mine.rate:.9g}.")  # fmt: skip
    return None


def without_rows(reference: Folder, run: Folder) -> list[str]:
    """A run of `ambidex train` writes its learning rates down; without them they are not compared, which is to be said."""
    return [
        f"{one.name} has no metrics.csv that can be read, so the learning rates of its steps were not compared."
        for one in (reference, run)
        if not one.rows and "data" in one.card
    ]


def not_written_down(reference: Folder, run: Folder) -> list[str]:
    """Of two loops of somebody's own."""
    if reference.trace is None or run.trace is None or "data" in reference.card or "data" in run.card:
        return []
    mine, theirs = reference.trace.rates, run.trace.rates
    why = [f"{one.name} wrote none down" for one, rates in ((reference, mine), (run, theirs)) if not rates]
    for step, (before, after) in enumerate(zip(mine, theirs)):
        if not why and len(before) != len(after):
            groups = f"{len(after)} group{'s' * (len(after) != 1)} of parameters against {len(before)}"
            why = [f"{groups} at step {step}"]
    return [f"The learning rates were not compared: {' and '.join(why)}."] if why else []


def of_other_length(reference: Folder, run: Folder) -> list[str]:
    """Of two loops of somebody's own, whose number of steps is on no card."""
    both = (reference, run)
    counts = [len(one.trace.rates) if one.trace else 0 for one in both]
    most = max(sum(map(len, one.trace.rates)) if one.trace else 0 for one in both)
    if not all(counts) or counts[0] == counts[1] or most >= MOST_RATES:  # then the count is not the loop's
        return []
    (few, short), (many, long) = sorted(zip(counts, (one.name for one in both)))
    return [f"{short} took {few} steps and {long} {many}; nothing is said of those that only one has."]


def written_down(reference: Folder, run: Folder) -> tuple[Rates, Rates] | None:
    """The learning rates that two loops of somebody's own wrote down, where they are of the same groups."""
    if reference.trace is None or run.trace is None:
        return None
    mine, theirs = reference.trace.rates, run.trace.rates
    both = list(zip(mine, theirs))
    return (mine, theirs) if both and all(len(a) == len(b) for a, b in both) else None


def of_own_loops(mine: Rates, theirs: Rates) -> Finding | None:
    for step, (before, after) in enumerate(zip(mine, theirs)):
        for a, b in zip(before, after):
            if abs(a - b) > SAME_OWN_RATE * abs(a):
                words = f"The learning rate is {b:.9g} instead of {a:.9g}."
                return Finding(
                    step, "schedule", "optimizer", "learning rate", "optimizer", float("inf"), words
                )
    return None
