"""Short trainings beside the run itself: from a state, for a few steps, in a chosen arithmetic, recorded."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ambidex.checkpoint import Checkpoint
from ambidex.compare.align import EXACT_ENOUGH
from ambidex.compare.arithmetic import Exact, Noisy, nudge
from ambidex.compare.feed import Feeder, Taker
from ambidex.compare.recorder import Recorder
from ambidex.compare.tracefile import BY_BF16, Table, floor_of
from ambidex.config import Settings
from ambidex.errors import Problems
from ambidex.plan import growth_of
from ambidex.trainer import Observer, Trainer

FEW, MANY = 4, 12  # roundings of a floor beside fp64's
FEW_STEPS = 2  # from a state

Rebuild = Callable[[str, str], Trainer]  # device name and precision -> the same training, eager, at step 0


class Watcher(Observer):
    """Lets a recorder see the steps of a trainer, and a feeder put the reference's gradients in."""

    def __init__(self, recorder: Recorder, fed: Mapping[str, Tensor] | None = None) -> None:
        self.recorder = recorder
        self._fed = fed
        self._feeder = Feeder(recorder, fed) if fed else None

    def begins(self, trainer: Trainer, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        self.recorder.begin(trainer.step, inputs, targets)

    def has_gradients(self, trainer: Trainer, loss: float) -> None:
        self.recorder.gradients(loss)
        if self._feeder and self._fed:
            self._feeder.feed_gradients(
                {
                    name.removeprefix("parameter."): t
                    for name, t in self._fed.items()
                    if name.startswith("parameter.")
                }
            )

    def has_stepped(self, trainer: Trainer, norm: float) -> None:
        self.recorder.stepped(norm)


class LossKeeper(Observer):
    """Keeps nothing of a step but its loss."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def has_gradients(self, trainer: Trainer, loss: float) -> None:
        self.losses.append(loss)


class TakingWatcher(Watcher):
    """Also takes down what flows between the blocks in the first step that it sees, for others to be fed with."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._taker: Taker | None = Taker(recorder.model, recorder.group)
        self.taken: dict[str, Tensor] = {}

    def has_gradients(self, trainer: Trainer, loss: float) -> None:
        super().has_gradients(trainer, loss)
        if self._taker is not None:
            parameters = {
                f"parameter.{name}": weight.grad.detach().cpu().clone()
                for name, weight in trainer.model.named_parameters()
                if weight.grad is not None
            }
            self.taken = self._taker.done(trainer.settings.batch_size) | parameters
            self._taker = None


def recorder_for(trainer: Trainer, steps: set[int]) -> Recorder:
    recorder = Recorder(trainer.model, trainer.optimizer.state, steps, lambda: trainer.scale.value)
    recorder.group = trainer.group
    return recorder


def play(trainer: Trainer, state: Checkpoint, watcher: Observer, count: int,
         arithmetic: AbstractContextManager[object] | None = None, nudged: int = 0) -> None:  # fmt: skip
    """``count`` steps from ``state``, or fewer where the loss stops being finite; the watcher records."""
    trainer.device.set_numerics()  # an exact leg on the CPU may have set others
    trainer.restore(state)
    for weight in trainer.model.parameters():
        weight.grad = None  # whatever the trainer itself does about it: every leg begins from the state alone
    if nudged:
        nudge(trainer.model, nudged)
    trainer.observer = watcher
    try:
        with arithmetic or nullcontext():
            for _ in range(count):
                trainer.update()
    except Problems:
        pass  # not finite: what was recorded until then is the record
    finally:
        trainer.observer = Observer()
        trainer.optimizer.zero_gradients()


def others_for(settings: Settings, count: int) -> int:
    """Roundings to try for a floor of ``count`` steps.

    Where weights get their first gradient late in them, as rows that only a look-up reaches do, and blocks that join, one
    of a million such gradients may cancel. AdamW's first update turns what is left of it, which is rounding, into a step
    as long as any: rare, and far beyond what a few legs show (docs/experiments.md, 2026-11-26).
    """
    s = settings
    begins_late = s.ngrams > 1 or not s.tied or s.sampled_softmax > 1 or 0 < growth_of(s).step < count
    return MANY if begins_late and count > FEW_STEPS else FEW


@dataclass
class Workshop:
    """The trainers that legs are played on: one in the leg's precision, one in fp64 on the CPU. Built when needed."""

    rebuild: Rebuild
    device: str
    precision: str
    _same: Trainer | None = None
    _exact: Trainer | None = None

    @property
    def same(self) -> Trainer:
        if self._same is None:
            self._same = self.rebuild(self.device, "fp32" if self.precision == BY_BF16 else self.precision)
            if self.precision == BY_BF16:
                self._same.device.compute_by_bf16_code()
        return self._same

    @property
    def exact(self) -> Trainer:
        if self._exact is None:
            self._exact = self.rebuild("cpu", "fp32")
            self._exact.model.double()
            self._exact.device.products = None  # the fast products know fp32 and bf16 only
        return self._exact

    def floor_tables(self, state: Checkpoint, steps: set[int], count: int) -> dict[str, Table]:
        """What other roundings make of the same steps: one table a leg, by the leg's name."""
        tables: dict[str, Table] = {}
        with suppressing_types(tables):
            recorder = recorder_for(self.exact, steps)
            play(self.exact, in_double(state), Watcher(recorder), count, Exact())  # type: ignore[no-untyped-call]
            tables["fp64"] = Table.of(recorder.record)
        return tables | self.other_roundings(
            state, steps, count, range(1, others_for(self.same.settings, count) + 1)
        )

    def other_roundings(
        self, state: Checkpoint, steps: set[int], count: int, numbers: Iterable[int]
    ) -> dict[str, Table]:
        """Nudged weights three times out of four and noise once in fp32; noise each time where a cast swallows nudges."""
        tables: dict[str, Table] = {}
        for number in numbers:
            recorder = recorder_for(self.same, steps)
            exact = self.precision in EXACT_ENOUGH
            if exact and number % 4:
                play(self.same, state, Watcher(recorder), count, nudged=number)
                tables[f"one ulp, {number}"] = Table.of(recorder.record)
            else:
                seed = number // 4 if exact else number
                play(self.same, state, Watcher(recorder), count, Noisy(seed))
                tables[f"noise, {seed}"] = Table.of(recorder.record)
        return tables

    def losses(self, state: Checkpoint, count: int) -> dict[str, list[float]]:
        """The loss of each of ``count`` steps in other roundings, by the leg's name: the band around the loss curve."""
        found: dict[str, list[float]] = {}
        for number in (1, 2):
            keeper = LossKeeper()
            if self.precision == "fp32":
                play(self.same, state, keeper, count, nudged=number)
            else:
                play(self.same, state, keeper, count, Noisy(number))
            kind = "one ulp" if self.precision == "fp32" else "noise"
            found[f"{kind}, {number}"] = [loss for loss in keeper.losses if math.isfinite(loss)]
        return found


@contextmanager
def suppressing_types(tables: dict[str, Table]) -> Iterator[None]:
    """A model with a kernel that knows no fp64 has no exact leg; the trace then says so."""
    try:
        yield
    except (RuntimeError, TypeError, NotImplementedError) as error:
        tables[f"fp64 failed: {str(error).splitlines()[0][:200]}"] = Table.of({})


def in_double(state: Checkpoint) -> Checkpoint:
    return replace(state, optimizer={name: moment.double() for name, moment in state.optimizer.items()})


def with_floor(base: Table, others: Mapping[str, Table]) -> Table:
    base.floor = floor_of(base, others.values())
    return base
