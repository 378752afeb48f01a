"""What `train --trace` does besides training: probe steps, the floor, states, and legs from a reference's states."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ambidex.cardfile import read_card
from ambidex.checkpoint import Checkpoint
from ambidex.compare import cards, states, tracefile
from ambidex.compare.legs import (
    FEW_STEPS,
    Rebuild,
    TakingWatcher,
    Watcher,
    Workshop,
    play,
    recorder_for,
    with_floor,
)
from ambidex.compare.states import Reference
from ambidex.compare.tracefile import BY_BF16, Leg, Table, Trace
from ambidex.errors import Problems
from ambidex.plan import growth_of
from ambidex.runs import Run
from ambidex.screen import line
from ambidex.trainer import Observer, Trainer

PROBES = (0, 1, 2, 4, 8, 9, 16, 32, 64)
LATE_START = 8  # the state after the first one from which two steps are taken
FREE_STEPS = {
    "fp32": 10
}  # how far the floor of the free run is measured; a bf16 run's is near 1 soon after step 1


def probe_steps(steps: int, join: int = 0) -> set[int]:
    """``join``: the step at which blocks that waited begin to compute, and are seen for the first time."""
    late = late_start(steps)
    return {step for step in (*PROBES, late, late + 1, join, join + 1) if step < steps}


def late_start(steps: int) -> int:
    """The second state: step 8, or in a very short run the last but one."""
    return min(LATE_START, max(0, steps - 2))


class Tracing(Observer):
    """Watches a training and writes its trace after every probe step."""

    def __init__(self, trainer: Trainer, run: Run, rebuild: Rebuild, reference: Reference | None) -> None:
        settings = trainer.settings
        self._run, self._reference = run, reference
        self._keeps_states = settings.trace_states
        join = growth_of(settings).step
        self._starts = {0, late_start(settings.steps), join}
        self._native, self._steps = trainer.device.precision, settings.steps
        self._by_hand = trainer.device.products is not None
        self._rebuild, self._device = rebuild, trainer.device.name
        self._recorder = recorder_for(trainer, probe_steps(settings.steps, join))
        self._recorder.watches_modules = trainer.forward is trainer.model
        self._watcher = Watcher(self._recorder)
        self._free_floor: dict[str, Table] = {}
        file = run.path / tracefile.TRACE
        before = tracefile.read(file) if trainer.step and file.exists() else None
        identity = before.identity if before else uuid.uuid4().hex
        origin = reference.identity if reference else identity
        self._trace = before or Trace(identity, origin, self._native)
        self._earlier = self._rows_before(trainer.step)

    def between(self, trainer: Trainer) -> None:
        if trainer.step == 0:
            self._before_first_step(trainer)
        if self._keeps_states and self._reference is None and trainer.step in self._starts:
            state = trainer.snapshot()
            self._save_state(state)
            line("trace", f"the state at step {trainer.step}, two steps from it, and their floor")
            self._examine(state, keep_feed=True)
            trainer.device.set_numerics()

    def begins(self, trainer: Trainer, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        self._watcher.begins(trainer, inputs, targets)

    def has_gradients(self, trainer: Trainer, loss: float) -> None:
        self._watcher.has_gradients(trainer, loss)

    def has_stepped(self, trainer: Trainer, norm: float) -> None:
        recorded = self._recorder.recording
        self._watcher.has_stepped(trainer, norm)
        if recorded:
            self._write()

    def _before_first_step(self, trainer: Trainer) -> None:
        state, count = (
            trainer.snapshot(),
            min(FREE_STEPS.get(self._native, FEW_STEPS), trainer.settings.steps),
        )
        line(
            "trace",
            f"measuring the rounding floor of the first {count} steps, by the same steps in fp64 and with noise",
        )
        workshop = Workshop(self._rebuild, self._device, self._native)
        steps = {s for s in self._recorder.steps if s < count}
        self._free_floor = workshop.floor_tables(state, steps, count)
        self._trace.floor_legs = list(self._free_floor)
        if band := min(trainer.settings.trace_band, trainer.settings.steps):
            line("trace", f"the loss of the first {band} steps twice more, with other roundings")
            self._trace.losses = workshop.losses(state, band)
        del workshop
        if self._reference is not None:
            line(
                "trace",
                f"two steps from each state of {self._reference.path}, and the same steps fed with its tensors",
            )
            for step in self._reference.steps:
                from_there = self._reference.state(step)
                if (
                    self._keeps_states
                ):  # for a third run: the reference's states, and what this build makes of them
                    self._save_state(from_there)
                self._examine(from_there, keep_feed=self._keeps_states)
        elif self._native != "fp32" and not self._keeps_states:
            self._examine(state, keep_feed=False)
        trainer.device.set_numerics()

    def _examine(self, state: Checkpoint, *, keep_feed: bool) -> None:
        """Steps from a state, in the run's precision and in fp32, and where there is a reference, fed by it."""
        by_code = [BY_BF16] if self._native == "bf16" and self._by_hand else []
        for precision in dict.fromkeys((self._native, "fp32", *by_code)):
            workshop = Workshop(self._rebuild, self._device, precision)
            count = self._steps_from(state.step, precision)
            steps = {
                step
                for step in (state.step, state.step + 1, *PROBES)
                if state.step <= step < state.step + count
            }
            recorder = recorder_for(workshop.same, steps)
            taking = keep_feed and precision == "fp32"
            watcher = TakingWatcher(recorder) if taking else Watcher(recorder)
            play(workshop.same, state, watcher, count)
            if isinstance(watcher, TakingWatcher) and self._run.writes:
                states.save_feed(self._run.path, state.step, watcher.taken, self._trace.identity)
            floors = workshop.floor_tables(state, steps, count)
            table = with_floor(Table.of(recorder.record), floors)
            self._trace.legs[Leg("state", state.step, precision)] = table
            self._trace.feeds.update(recorder.feeds)
            if self._reference is not None and precision == "fp32":
                recorder = recorder_for(workshop.same, {state.step})
                play(workshop.same, state, Watcher(recorder, self._reference.feed(state.step)), 1)
                self._trace.legs[Leg("fed", state.step, precision)] = Table.of(recorder.record)

    def _save_state(self, state: Checkpoint) -> None:
        if self._run.writes:
            states.save_state(self._run.path, state)

    def _steps_from(self, start: int, precision: str) -> int:
        """Two, but as many as a free run's floor reaches in the fp32 steps that stand for a lower precision's free run.

        Those are slow, so they are left to traces that others start from, or that start from another's.
        """
        asked = self._keeps_states or self._reference is not None
        whole = asked and precision == "fp32" != self._native and start == 0
        return min(FREE_STEPS["fp32"], self._steps) if whole else 2

    def _rows_before(self, step: int) -> Table | None:
        """What an interrupted run had recorded before the step at which it is continued."""
        free = self._trace.legs.get(Leg("free", 0, self._native))
        return free.only(row for row, key in enumerate(free.keys) if key.step < step) if free else None

    def _write(self) -> None:
        free = with_floor(Table.of(self._recorder.record), self._free_floor)
        self._trace.legs[Leg("free", 0, self._native)] = (
            self._earlier.followed_by(free) if self._earlier else free
        )
        self._trace.feeds.update(self._recorder.feeds)
        self._trace.shapes.update(self._recorder.shapes)
        self._trace.pieces.update(self._recorder.pieces)
        self._run.write_bytes(tracefile.TRACE, tracefile.write(self._trace))


def _fitting(reference: Reference, trainer: Trainer) -> Reference | None:
    """The reference, or None where the same settings make other parameters here: then the free run says which."""
    card = read_card(reference.path)
    try:
        states.check_fits(reference, trainer.model)
    except Problems as problems:
        before, settings = cards.config_of(card), trainer.settings.numeric().items()
        if any(before.get(name) != value for name, value in settings if name not in cards.FREE):
            raise
        line("trace", f"no steps from {reference.path}: {problems.problems[0].found}")
        return None
    return reference


def check_reference(folder: str) -> None:
    """Raise Problems where --from-trace names nothing to start from, before anything is made."""
    if folder:
        states.open_reference(Path(folder))


def warn_of_other_settings(reference: Path, run: Run) -> None:
    """Say before the training what `compare` would say after it."""
    try:
        problems = cards.why_not(read_card(reference), run.card)
    except Problems:
        return  # a reference whose card is gone has states all the same
    for problem in problems:
        line("trace", f"compare will refuse this run: {problem.found}; wanted {problem.wanted}")


def observer(trainer: Trainer, run: Run, rebuild: Callable[[str, str], Trainer]) -> Observer:
    """The observer that the settings ask for. Raises Problems where --from-trace names nothing to start from."""
    settings = trainer.settings
    if not (settings.trace or settings.trace_states or settings.from_trace):
        return Observer()
    reference = None
    if settings.from_trace:
        reference = states.open_reference(Path(settings.from_trace))
        reference = _fitting(reference, trainer)
        warn_of_other_settings(Path(settings.from_trace), run)
    return Tracing(trainer, run, rebuild, reference)
