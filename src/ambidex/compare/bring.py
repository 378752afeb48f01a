"""``ambidex.trace``: the same recording around anybody's training loop, with any torch model and optimizer.

A floor cannot be measured without running the loop again, so that is what is asked for: the same loop under
``leg=1``, ``leg=2``, ... starts from weights nudged by one unit in the last place, and adds to the floor of the trace
that the first one (``leg=0``) left in the folder. Two of three, and each where the model computes in bf16 or fp16,
which swallow a nudge, also get last-bit noise on the result of every operator.
"""

from __future__ import annotations

import hashlib
import json
import math
import platform
import sys
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

import ambidex
from ambidex.cardfile import CARD, FORMAT, read_card
from ambidex.compare import tracefile
from ambidex.compare.arithmetic import RELATIVE, Noisy, nudge
from ambidex.compare.asked import cannot_write, look_at
from ambidex.compare.fingerprint import Fingerprint, Floats, fingerprint
from ambidex.compare.recorder import LOW, Array, Recorder, array
from ambidex.compare.soundness import other_data
from ambidex.compare.stages import UPDATES
from ambidex.compare.tracefile import MOST_RATES, Key, Leg, Table, Trace, floor_of
from ambidex.device import cpu as processor
from ambidex.engine import TORCHS_OWN, numerics
from ambidex.errors import Problem, Problems
from ambidex.escaping import one_line
from ambidex.files import replace_synced

LEGS_RATE = 1e-3  # relative: some optimizers make their rates from the gradients, whose roundings differ
STEPS = (0, 1, 2, 4, 8)
MOST_SAID = 20  # things that were not recorded, on a card
ROUNDING = {name: RELATIVE[kind] for kind, name in LOW.items()} | {"fp32": RELATIVE[torch.float32]}


@contextmanager
def trace(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    path: str | Path,
    *,
    steps: Collection[int] = STEPS,
    leg: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Record the training loop inside the ``with`` block and write a run folder that ``ambidex compare`` reads.

    A step is one call of ``optimizer.step()``; of several optimizers, given as a list in the order of their steps, it
    ends with the last one's. ``steps`` are the numbers of those that are recorded. ``config`` is what two runs must have
    in common to be compared: anything JSON can hold. ``leg`` above 0 repeats the loop from nudged weights and raises the
    floor of the trace in ``path``; three of them are enough. Raises Problems before the loop: exit 2 for what cannot be
    or a folder that holds something else, 4 where it cannot be written.
    """
    model, compiled, optimizers, folder, chosen, leg, kept, foreign = look_at(
        model, optimizer, path, steps, leg, config
    )
    before, low = (_first_leg(folder), _low(folder)) if leg else (None, "")
    if leg:
        _refuse_other_config(folder, leg, kept)
    if leg and _kept_in(model) == "fp32":
        nudge(model, leg)
    weights = _hash(model)
    recorder = Recorder(model, lambda: _moments(model, optimizers), chosen)
    recorder.watches_modules = not compiled  # hooks would be compiled with it
    if foreign:
        words = f"what the optimizer keeps of parameters that are not the model's ({foreign} of them)"
        recorder.not_recorded[words] = None
    loop = _Loop(model, optimizers, recorder)
    rounding: AbstractContextManager[object] = (
        Noisy(leg, sums=True) if leg and (low or leg % 3 != 1) else nullcontext()
    )
    try:
        with rounding:
            yield
    finally:
        loop.leave()
    table = Table.of(recorder.record)
    if before is not None:
        _refuse_other_data(folder, leg, before, table)
        _refuse_other_rates(folder, leg, before, loop.rates)
        _raise_floor(before, table, f"{'noise' if low or leg % 3 != 1 else 'one ulp'}, {leg}")
        _write(folder, before)
        return
    precision = _kept_in(model)
    identity = uuid.uuid4().hex
    found = Trace(
        identity, identity, precision, {Leg("free", 0, precision): table}, recorder.feeds, recorder.shapes,
        pieces=recorder.pieces, rates=loop.rates,
    )  # fmt: skip
    card = _card(model, weights, precision, kept or {}) | {"computes_in": recorder.low or precision}
    if recorder.not_recorded:
        card["not_recorded"] = list(recorder.not_recorded)[:MOST_SAID]
    _write(folder, found, card)


class _Loop:
    """Tells the recorder where a step begins and ends, from hooks on the model, its parameters and the optimizers."""

    def __init__(
        self, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], recorder: Recorder
    ) -> None:
        self._model, self._optimizers, self._recorder, self._step = model, optimizers, recorder, 0
        self._depth = 0  # an optimizer's step may call that of the class below it, and both call the hooks
        self._caller: FrameType | None = None  # that of the outermost step under way
        self._thread = 0  # in which it is
        self._watch: RemovableHandle | None = None  # a hook on the model, during a step
        self._asked = False  # whether the gradients of this step were taken down
        self._accumulated: dict[str, Any] = {}  # before clipping
        self._given: dict[str, Fingerprint] = {}  # to the optimizers
        self._squares: dict[str, float] = {}  # of what was given to them
        self._norm = 0.0
        self._names: dict[Tensor, str] = {}
        self.rates: list[list[float]] = []  # a step each: of every group of parameters
        self._hooks: list[Any] = []
        for one in optimizers:
            self._hooks.append(one.register_step_pre_hook(self._begins))
            self._hooks.append(one.register_step_post_hook(self._stepped))
        self._begin()

    def _begin(self) -> None:
        for (
            name,
            weight,
        ) in self._model.named_parameters():  # there may be more of them than in the step before
            if weight.requires_grad and weight not in self._names:
                self._names[weight] = name
                self._hooks.append(weight.register_post_accumulate_grad_hook(self._keep))  # type: ignore[no-untyped-call]
        self._accumulated, self._given, self._squares, self._asked = {}, {}, {}, False
        self._recorder.begin(self._step)

    def _keep(self, weight: Tensor) -> None:
        """The gradient as it is after each backward: the last one is that before clipping."""
        name = self._names[weight]
        if self._recorder.recording and name not in self._given and weight.grad is not None:
            self._accumulated[name] = array(weight.grad, copy=True)

    def _begins(self, optimizer: torch.optim.Optimizer, arguments: Any, named: Any) -> Any:
        """The gradients are there, unless the optimizer is given a function that computes them."""
        if self._was_left():
            self._take_back()
        self._depth += 1
        if self._depth > 1:
            return None
        self._caller, self._thread = sys._getframe(1), threading.get_ident()
        if self._recorder.recording and self._recorder.watches_modules:
            self._watch = self._model.register_forward_pre_hook(self._comes_in, with_kwargs=True)
        if optimizer is self._optimizers[0] and sum(map(len, self.rates[-1:])) * len(self.rates) < MOST_RATES:
            self.rates.append([_number(g.get("lr")) for one in self._optimizers for g in one.param_groups])
        closure = named.get("closure", arguments[1] if len(arguments) > 1 else None)
        if not callable(closure):
            self._gradients(optimizer)
            return None

        def first_asked(*some: Any, **more: Any) -> Any:
            found = closure(*some, **more)
            self._gradients(optimizer)
            return found

        if "closure" in named:
            return arguments, {**named, "closure": first_asked}
        return (arguments[0], first_asked, *arguments[2:]), named

    def _was_left(self) -> bool:
        """Whether a step was begun that is no longer under way: it raised, and the loop went on all the same."""
        if not self._depth or threading.get_ident() != self._thread:
            return False
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self._caller:
            frame = frame.f_back
        return frame is None

    def _take_back(self) -> None:
        """What is recorded of a step that raised is dropped, and the step is the next that ends well."""
        if self._recorder.recording:
            words = f"an attempt at step {self._step}, in which optimizer.step() raised"
            self._recorder.not_recorded[words] = None
        del self.rates[self._step :]
        self._leave_step()
        self._recorder.take_back()
        self._begin()

    def _comes_in(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self._was_left():
            self._take_back()
            self._recorder.enter_late(module, arguments, named)

    def _leave_step(self) -> None:
        self._depth, self._caller = 0, None
        if self._watch is not None:
            self._watch.remove()
            self._watch = None

    def _gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer is about to use the gradients; it may change them itself, and then that is its own doing."""
        if not self._recorder.recording:
            return
        mine = self._of(optimizer)
        if mine.keys() & self._given.keys():  # its closure was called again
            return
        for name, weight in mine.items():
            if weight.grad is not None:
                gradient = array(weight.grad)
                self._given[name], self._squares[name] = fingerprint(gradient), _square(gradient)
        if self._asked:  # of several: what came since the one before
            self._recorder.gradients_of(mine.keys(), self._accumulated)
        else:
            self._asked = True
            later = {name for one in self._optimizers if one is not optimizer for name in self._of(one)}
            self._recorder.gradients(None, self._accumulated, set(self._names.values()) - later)
        squares = self._squares | {name: _square(g) for name, g in self._accumulated.items()}
        self._norm = sum(squares.values()) ** 0.5

    def _of(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        return {self._names[weight]: weight for weight in weights if weight in self._names}

    def _stepped(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._leave_step()
        if optimizer is not self._optimizers[-1]:
            return
        given = None if len(self._optimizers) == 1 and not self._given else self._given
        self._recorder.stepped(self._norm, given)
        self._step += 1
        self._begin()

    def leave(self) -> None:
        self._leave_step()
        for hook in self._hooks:
            hook.remove()
        self._recorder.end()


def _square(values: Array) -> float:
    return float(np.square(values.astype(np.float64)).sum())


def _number(rate: Any) -> float:
    """A rate may be a tensor, or not be there; what is no number is not compared."""
    try:
        found = float(rate)
    except (TypeError, ValueError, RuntimeError):
        return 0.0
    return found if math.isfinite(found) else 0.0


def _moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Whatever the optimizer keeps of a parameter's own shape, by its own name for it: exp_avg, momentum_buffer, ..."""
    found = {}
    for name, weight in model.named_parameters():
        for optimizer in optimizers:
            for kind, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    known = "momentum" if kind == "momentum_buffer" else str(kind).replace(".", "_")[:60]
                    found[f"{known}.{name}"] = value
    return found


def _kept_in(model: nn.Module) -> str:
    """The lowest precision of the weights."""
    kinds = {weight.dtype for weight in model.parameters()}
    low = next((name for kind, name in LOW.items() if kind in kinds), "")
    return low or ("fp64" if not kinds & {torch.float32, torch.complex64} else "fp32")


def _low(folder: Path) -> str:
    """The low precision in which the first leg's model computed, under autocast for one; empty where there was none."""
    computed = str(read_card(folder).get("computes_in", ""))
    return computed if computed in LOW.values() else ""


def _first_leg(folder: Path) -> Trace:
    file = folder / tracefile.TRACE
    if not file.exists():
        raise Problems(
            Problem("There is no trace whose floor this leg could measure.", found=f"no {file}",
                    wanted="the same loop traced with leg=0 first", fix=f'with ambidex.trace(model, optimizer, "{folder}"): ...')
        )  # fmt: skip
    return tracefile.read(file)


def _raise_floor(found: Trace, table: Table, name: str) -> None:
    for leg, base in found.legs.items():
        measured = np.fmax(base.floor, floor_of(base, [table]))
        base.floor = np.where(np.isnan(measured), measured, np.fmax(measured, _kept_rounded(leg, base)))
    found.floor_legs.append(name)


def _refuse_other_data(folder: Path, leg: int, before: Trace, table: Table) -> None:
    for base in before.legs.values():
        if key := other_data(base, table):
            raise Problems(
                Problem(f"Leg {leg} was given other data than leg 0.", found=f"other {key.kind} at step {key.step}",
                        wanted=f"the batches of leg 0, whose trace in {folder} is left as it was",
                        fix="seed or rewind what draws the batches inside the loop that every leg runs")
            )  # fmt: skip


def _refuse_other_rates(folder: Path, leg: int, before: Trace, rates: list[list[float]]) -> None:
    """Another rate in a leg would be taken for rounding, and everything for the same."""
    for step, (mine, theirs) in enumerate(zip(before.rates, rates)):
        for first, now in zip(mine, theirs):
            if abs(first - now) > LEGS_RATE * abs(first):
                raise Problems(
                    Problem(f"Leg {leg} has another learning rate than leg 0.", found=f"{now:.9g} at step {step}",
                            wanted=f"{first:.9g}, as in leg 0, whose trace in {folder} is left as it was",
                            fix="make the optimizer and its schedule anew for every leg")
                )  # fmt: skip


def _refuse_other_config(folder: Path, leg: int, config: dict[str, Any] | None) -> None:
    """What two runs must have in common, the legs of one must all the more."""
    first = read_card(folder)["config"]
    if config is None or config == first:
        return
    names = [name for name in {**first, **config} if first.get(name) != config.get(name)]
    raise Problems(
        Problem(f"Leg {leg} has another config than leg 0.", found=one_line(f"{names[0]}: {config.get(names[0])}"),
                wanted=one_line(f"{names[0]}: {first.get(names[0])}, as in {folder}"), fix="the same loop with the same config in every leg")
    )  # fmt: skip


def _kept_rounded(leg: Leg, base: Table) -> Floats:
    """What an update, weights after minus weights before, owes to weights being kept in their own precision.

    No nudge shows it, and `train --trace` has a leg in fp64 for it: a norm's weight near 1 that moves by 1e-5 is off by
    a thousandth of that. Half a unit in the last place at most, and its root mean square.
    """
    found = np.zeros(len(base.keys))
    unit = ROUNDING.get(leg.precision, 2.0**-53) / 3**0.5
    for row, key in enumerate(base.keys):
        weight = base.row.get(Key(0, "weight", key.name))
        if key.kind in UPDATES and weight is not None and base.norms[row] > 0:
            found[row] = unit * base.norms[weight] / base.norms[row]
    return found


def _write(folder: Path, found: Trace, card: dict[str, Any] | None = None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_synced(folder / tracefile.TRACE, tracefile.write(found))
        if card is not None:
            replace_synced(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())
    except OSError as error:
        raise cannot_write(folder, error.strerror or str(error)) from None


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode() + b"\0" + array(weight).tobytes())
    return digest.hexdigest()


def _card(model: nn.Module, weights: str, precision: str, config: dict[str, Any]) -> dict[str, Any]:
    cpu = processor.look()
    device = str(next(iter(model.parameters())).device)
    return {
        "format": FORMAT,
        "ambidex": ambidex.__version__,
        "config": config,
        "precision": precision,
        "weights_sha256": weights,
        "device": {"name": device, "reason": "where the model is"},
        "threads": torch.get_num_threads(),
        "cpu": {"name": cpu.name, "isa": list(cpu.isa), "cores": cpu.cores, "quota": cpu.quota},
        "numerics": numerics(),
        "between_products": TORCHS_OWN,
        "build": {
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "python": platform.python_version(),
        },
        "system": f"{platform.system()} {platform.machine()}",
    }
