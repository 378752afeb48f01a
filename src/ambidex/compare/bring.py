"""``ambidex.trace``: the same recording around anybody's training loop, with any torch model and optimizer.

A floor cannot be measured without running the loop again, so that is what is asked for: the same loop under
``leg=1``, ``leg=2``, ... starts from weights nudged by one unit in the last place, and adds to the floor of the trace
that the first one (``leg=0``) left in the folder. Two of three, and each where the model computes in bf16 or fp16,
which swallow a nudge, also get last-bit noise on the result of every operator.
"""

from __future__ import annotations

import hashlib
import json
import platform
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import ambidex
from ambidex import runs
from ambidex.cardfile import CARD, read_card
from ambidex.compare import tracefile
from ambidex.compare.arithmetic import RELATIVE, Noisy, nudge
from ambidex.compare.fingerprint import Floats
from ambidex.compare.recorder import LOW, Recorder, array
from ambidex.compare.soundness import other_data
from ambidex.compare.stages import UPDATES
from ambidex.compare.tracefile import Key, Leg, Table, Trace, floor_of
from ambidex.device import cpu as processor
from ambidex.engine import TORCHS_OWN, numerics
from ambidex.errors import Exit, Problem, Problems
from ambidex.files import replace_synced
from ambidex.rows import METRICS

STEPS = (0, 1, 2, 4, 8)
ROUNDING = {name: RELATIVE[kind] for kind, name in LOW.items()} | {"fp32": RELATIVE[torch.float32]}


@contextmanager
def trace(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    path: str | Path,
    *,
    steps: Collection[int] = STEPS,
    leg: int = 0,
    config: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Record the training loop inside the ``with`` block and write a run folder that ``ambidex compare`` reads.

    A step is one call of ``optimizer.step()``. ``config`` is what two runs must have in common to be compared:
    anything JSON can hold. ``leg`` above 0 repeats the loop from nudged weights and raises the floor of the trace in
    ``path``; three of them are enough. Raises Problems: exit 2 for a folder that holds something else, 4 where it
    cannot be written.
    """
    folder = Path(path)
    model, compiled = _unwrapped(model)
    before, low = (_first_leg(folder), _low(folder)) if leg else (None, "")
    if leg and _kept_in(model) == "fp32":
        nudge(model, leg)
    weights = _hash(model)
    recorder = Recorder(model, lambda: _moments(model, optimizer), set(steps))
    recorder.watches_modules = not compiled  # hooks would be compiled with it
    loop = _Loop(model, optimizer, recorder)
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
        _raise_floor(before, table, f"{'noise' if low or leg % 3 != 1 else 'one ulp'}, {leg}")
        _write(folder, before)
        return
    precision = _kept_in(model)
    identity = uuid.uuid4().hex
    found = Trace(
        identity, identity, precision, {Leg("free", 0, precision): table}, recorder.feeds, recorder.shapes
    )
    _refuse_other(folder)
    _write(folder, found)
    card = _card(model, weights, precision, dict(config or {})) | {"computes_in": recorder.low or precision}
    replace_synced(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())


def _unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model inside torch.compile's and DistributedDataParallel's wrappers, so that names are its own, and whether it is compiled."""
    compiled = False
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model, compiled = inner, True
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            return model, compiled or any(
                getattr(one, "_compiled_call_impl", None) is not None for one in model.modules()
            )


class _Loop:
    """Tells the recorder where a step begins and ends, from hooks on the model, its parameters and the optimizer."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, recorder: Recorder) -> None:
        self._recorder, self._step = recorder, 0
        self._depth = 0  # an optimizer's step may call that of the class below it, and both call the hooks
        self._accumulated: dict[str, Any] = {}
        self._norm = 0.0
        self._names = {weight: name for name, weight in model.named_parameters() if weight.requires_grad}
        self._hooks: list[Any] = [
            optimizer.register_step_pre_hook(lambda *_: self._gradients()),
            optimizer.register_step_post_hook(lambda *_: self._stepped()),
        ]
        self._hooks += [
            w.register_post_accumulate_grad_hook(self._keep)  # type: ignore[no-untyped-call]
            for w in self._names
        ]
        recorder.begin(0)

    def _keep(self, weight: Tensor) -> None:
        """The gradient as it is after each backward: the last one is that before clipping."""
        if self._recorder.recording and weight.grad is not None:
            self._accumulated[self._names[weight]] = array(weight.grad, copy=True)  # type: ignore[index]

    def _gradients(self) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        self._recorder.gradients(None, self._accumulated)
        squares = [float(np.square(g.astype(np.float64)).sum()) for g in self._accumulated.values()]
        self._norm = sum(squares) ** 0.5

    def _stepped(self) -> None:
        self._depth -= 1
        if self._depth:
            return
        self._recorder.stepped(self._norm)
        self._accumulated = {}
        self._step += 1
        self._recorder.begin(self._step)

    def leave(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._recorder.end()


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Whatever the optimizer keeps of a parameter's own shape, by its own name for it: exp_avg, momentum_buffer, ..."""
    found = {}
    for name, weight in model.named_parameters():
        for kind, value in optimizer.state.get(weight, {}).items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                found[f"{'momentum' if kind == 'momentum_buffer' else kind}.{name}"] = value
    return found


def _kept_in(model: nn.Module) -> str:
    """The lowest precision of the weights."""
    kinds = {weight.dtype for weight in model.parameters()}
    low = next((name for kind, name in LOW.items() if kind in kinds), "")
    return low or ("fp32" if torch.float32 in kinds else "fp64")


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


def _refuse_other(folder: Path) -> None:
    if (folder / METRICS).exists() or (folder / "checkpoints").exists():
        raise Problems(
            Problem("The folder holds a run of ambidex train.", found=str(folder), wanted="a folder of its own for this trace")
        )  # fmt: skip


def _write(folder: Path, found: Trace) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_synced(folder / tracefile.TRACE, tracefile.write(found))
    except OSError as error:
        raise Problems(
            Problem("The trace cannot be written.", found=f"{folder}: {error.strerror or error}",
                    wanted="a folder that this user may write to"), Exit.CANNOT_WRITE,
        ) from None  # fmt: skip


def _hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(name.encode() + b"\0" + array(weight).tobytes())
    return digest.hexdigest()


def _card(model: nn.Module, weights: str, precision: str, config: dict[str, Any]) -> dict[str, Any]:
    cpu = processor.look()
    device = str(next(iter(model.parameters())).device)
    return {
        "format": runs.CARD_FORMAT,
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
