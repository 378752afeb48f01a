"""More legs for a floor that was measured before, where a run came close to the limit: `ambidex compare --measure-again`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ambidex import checkpoint
from ambidex.checkpoint import Checkpoint
from ambidex.compare import states, tracefile
from ambidex.compare.legs import Rebuild, Workshop
from ambidex.compare.tracefile import Leg, floor_of
from ambidex.errors import Exit, Problem, Problems
from ambidex.files import replace_synced
from ambidex.screen import line
from ambidex.trainer import Trainer

FIRST = 10  # plus the legs that there are: beyond all numbers that `train --trace` uses


def raise_floor(trainer: Trainer, rebuild: Rebuild, path: Path, legs: int) -> None:
    """Play the traced steps of the run at ``path`` ``legs`` more times with other roundings, and raise its floor.

    ``trainer`` stands at the run's first step. A floor can only rise: it is the largest difference ever seen. Raises
    Problems: exit 3 where there is no trace, 4 where it cannot be written.
    """
    file = path / tracefile.TRACE
    trace = tracefile.read(file)
    first = FIRST + len(trace.floor_legs)
    for leg, table in trace.legs.items():
        state = _state(trainer, path, leg)
        measured = {key.step for key, floor in zip(table.keys, table.floor) if not np.isnan(floor)}
        if state is None or not measured:
            continue
        line("trace", f"{legs} more legs: {leg.mode}, from step {leg.start}, {leg.precision}")
        workshop = Workshop(rebuild, trainer.device.name, leg.precision)
        tables = workshop.other_roundings(
            state, measured, max(measured) - leg.start + 1, range(first, first + legs)
        )
        table.floor = np.fmax(table.floor, floor_of(table, tables.values()))
    trace.floor_legs += [f"again, {number}" for number in range(first, first + legs)]
    try:
        replace_synced(file, tracefile.write(trace))
    except OSError as error:
        raise Problems(
            Problem("The trace cannot be written.", found=f"{file}: {error.strerror or error}"),
            Exit.CANNOT_WRITE,
        ) from None


def _state(trainer: Trainer, path: Path, leg: Leg) -> Checkpoint | None:
    """Where a leg started: the first weights, or a state that --trace-states kept; None where it is not there."""
    if leg.mode == "fed":
        return None
    if leg.start == 0:
        return trainer.snapshot()
    if leg.start not in checkpoint.steps_in(path / states.PROBES):
        return None
    return states.Reference(path, "", [leg.start]).state(leg.start)
