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
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ambidex
from ambidex.cardfile import CARD, FORMAT, read_card
from ambidex.compare import tracefile
from ambidex.compare.arithmetic import RELATIVE, Noisy, nudge
from ambidex.compare.asked import cannot_write, look_at
from ambidex.compare.fingerprint import Floats
from ambidex.compare.loop import Loop, moments
from ambidex.compare.recorder import LOW, Recorder
from ambidex.compare.soundness import other_data
from ambidex.compare.stages import UPDATES
from ambidex.compare.tensors import array
from ambidex.compare.tracefile import Key, Leg, Table, Trace, floor_of
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
    recorder = Recorder(model, lambda: moments(model, optimizers), chosen)
    recorder.watches_modules = not compiled  # hooks would be compiled with it
    if foreign:
        words = f"what the optimizer keeps of parameters that are not the model's ({foreign} of them)"
        recorder.not_recorded[words] = None
    loop = Loop(model, optimizers, recorder)
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
