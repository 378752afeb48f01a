"""Whether a floor is rounding at all: legs that saw other data, began elsewhere or drew another dropout measure something else."""

from __future__ import annotations

import math

from ambidex.compare.align import TOO_HIGH
from ambidex.compare.fingerprint import errors
from ambidex.compare.tracefile import Key, Table, Trace
from ambidex.errors import Problem

DATA = ("tokens", "targets")
NUDGED = 1e-3  # far more than noise in the last place makes of data that is computed, or of a first weight, in any precision
MOST = 0.5  # of a first step's outputs: rounding alone leaves nearly all of them near where they were
DO = "in each leg the same batches, the same first weights, and dropout off or drawn from a generator seeded anew"


def other_data(base: Table, leg: Table) -> Key | None:
    """The first batch that ``leg`` was given and ``base`` was not; every leg is to compute the same."""
    for key in base.keys:
        if key.kind in DATA and key in leg.row:
            mine, theirs = [base.row[key]], [leg.row[key]]
            if float(errors(base.sums[mine], leg.sums[theirs], base.norms[mine])[0]) > NUDGED:
                return key
    return None


def unsound(name: str, trace: Trace) -> list[Problem]:
    """Why the floor of run ``name`` is no measure of rounding; empty where nothing speaks against it.

    Only first steps are asked: later on a run may have drifted as far as it likes.
    """
    problems: dict[str, Problem] = {}
    for leg, table in trace.legs.items():
        outputs = [0, 0]  # with a floor, and with one that is too high
        for key, floor, norm in zip(table.keys, table.floor, table.norms):
            if key.step != leg.start or math.isnan(floor):
                continue
            if key.kind == "output" and norm == 0:  # no measure of a distance
                continue
            if key.kind in DATA and floor > NUDGED:
                problems["data"] = _problem(
                    name, f"the {key.kind} of step {key.step} are not the same in all of them"
                )
            elif key.kind == "weight" and floor > NUDGED:
                problems.setdefault(
                    "weights", _problem(name, f"first weights of {key.name} are {floor:.2g} apart")
                )
            elif key.kind == "output":
                outputs[0] += 1
                outputs[1] += floor > TOO_HIGH
        if outputs[1] > MOST * outputs[0] and "data" not in problems and "weights" not in problems:
            found = f"{outputs[1]} of {outputs[0]} outputs are more than {TOO_HIGH:.0%} apart in their first step ({leg.mode})"
            problems["outputs"] = _problem(name, found)
    return list(problems.values())


def _problem(name: str, found: str) -> Problem:
    return Problem(f"The legs of {name} differ by more than rounding, so they are no floor to judge by.", found=found,
                   wanted="legs that compute the same in other roundings", fix=DO)  # fmt: skip
