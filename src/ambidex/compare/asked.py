"""What ``ambidex.trace`` is asked for, looked at before a loop of hours begins: all that is wrong with it, at once."""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ambidex.compare.tracefile import LONGEST_NAME
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.rows import METRICS

LARGEST_CONFIG = 1 << 20  # bytes: a card is read whole
HOW = 'with ambidex.trace(model, optimizer, "runs/mine"): ...'


class Asked(NamedTuple):
    """What was asked for, in the types that it is used in."""

    model: nn.Module  # inside its wrappers
    compiled: bool
    optimizers: list[Optimizer]
    folder: Path
    steps: set[int]
    leg: int
    config: dict[str, Any] | None  # as JSON brings it back
    foreign: int  # parameters that the optimizers have and the model has not, such as copies in fp32


def look_at(
    model: object, optimizer: object, path: object, steps: object, leg: object, config: object
) -> Asked:
    """Raises Problems: exit 2 for what cannot be, 4 for a folder that cannot be written to."""
    problems: list[Problem] = []
    optimizers = _optimizers(optimizer, problems)
    inner, compiled = unwrapped(model) if isinstance(model, nn.Module) else (nn.Module(), False)
    if not isinstance(model, nn.Module):
        problems.append(_wrong("model", model, "a torch.nn.Module"))
    else:
        problems += _about_model(inner, optimizers)
    chosen, number, kept = _steps(steps), _count(leg), _config(config)
    for found in (chosen, number, kept):
        if isinstance(found, Problem):
            problems.append(found)
    if (
        not isinstance(path, (str, os.PathLike))
        or isinstance(os.fspath(path), bytes)
        or "\0" in os.fspath(path)
    ):
        problems.append(_wrong("path", path, "the name of a folder: text, or a pathlib.Path"))
    if problems:
        raise Problems(problems)
    folder = Path(path)  # type: ignore[arg-type]
    _refuse_folder(folder)
    foreign = len(_foreign(inner, optimizers))
    return Asked(inner, compiled, optimizers, folder, chosen, number, kept, foreign)  # type: ignore[arg-type]


def unwrapped(model: nn.Module) -> tuple[nn.Module, bool]:
    """The model inside the wrappers of torch.compile, DistributedDataParallel and their like, so that names are its own,
    and whether it is compiled: then no hook reaches the modules inside."""
    compiled = False
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model, compiled = inner, True
        elif _only_wraps(model):
            model = model.module  # type: ignore[assignment]
        else:
            return model, compiled or any(
                getattr(one, "_compiled_call_impl", None) is not None for one in model.modules()
            ) or isinstance(model, torch.jit.ScriptModule)


def _only_wraps(model: nn.Module) -> bool:
    """Whether a model is another one, by the name that torch's own wrappers give it, and keeps no number besides."""
    inside = [name for name, _ in model.named_children()]
    own = [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    return inside == ["module"] and not own and isinstance(model.module, nn.Module)


def _about_model(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Problem]:
    weights = dict(model.named_parameters())
    if lazy := [name for name, weight in weights.items() if is_lazy(weight)]:
        return [Problem("The model has lazy weights, which do not exist yet.", found=", ".join(lazy[:5]),
                        wanted="a model whose weights have their shapes",
                        fix="call the model once on a batch, make the optimizer after that, and then trace")]  # fmt: skip
    if not weights:
        return [Problem("The model has no parameters, so a training changes nothing in it.", found=type(model).__name__,
                        wanted="the module that is trained", fix=HOW)]  # fmt: skip
    problems = []
    names = [*weights, *(name for name, _ in model.named_modules())]
    if long := [name for name in names if len(name) > LONGEST_NAME]:
        problems.append(Problem("A module or a parameter has too long a name for a trace.", found=f"{one_line(long[0], 60)} ({len(long[0]):,} characters)",
                                wanted=f"{LONGEST_NAME:,} characters at most"))  # fmt: skip
    if strange := [name for name, weight in weights.items() if weight.is_meta]:
        problems.append(Problem("The model has weights without numbers, on torch's meta device.", found=", ".join(strange[:5]),
                                wanted="weights on a device that computes", fix="model.to_empty(device=...), and fill them"))  # fmt: skip
    theirs, foreign = _parameters_of(optimizers), _foreign(model, optimizers)
    if optimizers and len(foreign) == len(theirs) and not _are_wider(foreign, list(weights.values())):
        problems.append(Problem("The optimizer has none of the model's parameters.", found=f"{len(theirs)} parameters, all of something else",
                                wanted="the optimizer that trains this model", fix="make the optimizer from this model.parameters(), after the model was moved and wrapped"))  # fmt: skip
    return problems


def _parameters_of(optimizers: Sequence[Optimizer]) -> list[Tensor]:
    return [weight for one in optimizers for group in one.param_groups for weight in group["params"]]


def _foreign(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[Tensor]:
    mine = {id(weight) for weight in model.parameters()}
    return [weight for weight in _parameters_of(optimizers) if id(weight) not in mine]


def _are_wider(foreign: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether they may be copies of weights in more bits, which some loops train in their stead."""
    least = min(weight.element_size() for weight in weights)
    elements = sum(weight.numel() for weight in weights)
    return any(one.is_floating_point() and one.element_size() > least for one in foreign) and elements >= sum(
        one.numel() for one in foreign
    )


def _optimizers(given: object, problems: list[Problem]) -> list[Optimizer]:
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    found = [one for one in several if isinstance(one, Optimizer)]
    if not found or len(found) < len(several):
        problems.append(
            _wrong(
                "optimizer", given, "a torch.optim.Optimizer, or a list of them in the order of their steps"
            )
        )
        return []
    return found


def _steps(given: object) -> set[int] | Problem:
    wanted = "whole numbers from 0, such as range(5) or (0, 1, 2, 4, 8)"
    try:
        if isinstance(given, (str, bytes, Mapping)):
            raise TypeError
        steps = {_whole(one) for one in given}  # type: ignore[attr-defined]
    except (TypeError, ValueError, RuntimeError):
        fix = (
            f"steps=range({given})"
            if isinstance(given, int) and given > 0 and not isinstance(given, bool)
            else ""
        )
        return Problem(
            "steps= are not numbers of steps.", found=one_line(repr(given)), wanted=wanted, fix=fix
        )
    if not steps or min(steps) < 0:
        return Problem("steps= are not numbers of steps.", found=one_line(repr(given)), wanted=wanted)
    return steps


def _count(given: object) -> int | Problem:
    try:
        if (leg := _whole(given)) >= 0:
            return leg
    except (TypeError, ValueError, RuntimeError):
        pass
    return Problem("leg= is no number of a leg.", found=one_line(repr(given)),
                   wanted="0 for the training itself, 1 and more for those that measure its floor")  # fmt: skip


def _whole(given: Any) -> int:
    if isinstance(given, bool):
        raise TypeError
    return operator.index(given)


def _config(given: object) -> dict[str, Any] | Problem | None:
    if given is None:
        return None
    wanted = (
        "a dictionary of what JSON can hold: text, finite numbers, True, False, None, lists and dictionaries"
    )
    if not isinstance(given, Mapping):
        return _wrong("config", given, wanted)
    try:
        written = json.dumps(dict(given), allow_nan=False)
        found: dict[str, Any] = json.loads(written)
    except (TypeError, ValueError, RecursionError):
        wrong = next(
            (
                f"{one_line(repr(key), 80)}: {one_line(repr(value), 80)}"
                for key, value in given.items()
                if not _holds(key, value)
            ),
            "",
        )
        return Problem(
            "config= holds what JSON cannot.",
            found=wrong or "dictionaries inside one another, without end",
            wanted=wanted,
        )
    if len(written) > LARGEST_CONFIG:
        return Problem(
            "config= is too large for a card.",
            found=f"{len(written):,} bytes as JSON",
            wanted=f"{LARGEST_CONFIG:,} at most",
        )
    return found


def _holds(key: Any, value: Any) -> bool:
    try:
        json.dumps({key: value}, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _refuse_folder(folder: Path) -> None:
    """What stands in the way of a trace is said before the loop, and not after it."""
    try:
        if (folder / METRICS).exists() or (folder / "checkpoints").exists():
            raise Problems(
                Problem("The folder holds a run of ambidex train.", found=str(folder), wanted="a folder of its own for this trace")
            )  # fmt: skip
        there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            why = "is no folder" if not there.is_dir() else "may not be written to"
            raise cannot_write(folder, f"{there} {why}")
    except (OSError, ValueError) as error:
        raise cannot_write(folder, getattr(error, "strerror", None) or str(error)) from None


def cannot_write(folder: Path, why: str) -> Problems:
    return Problems(
        Problem("The trace cannot be written.", found=f"{one_line(str(folder))}: {why}",
                wanted="a folder that this user may write to"), Exit.CANNOT_WRITE,
    )  # fmt: skip


def _wrong(name: str, given: object, wanted: str) -> Problem:
    found = f"{type(given).__name__}: {one_line(repr(given), 80)}"
    return Problem(
        f"{name}= is not of the kind that it must be.",
        found=found,
        wanted=wanted,
        fix=HOW if name in ("model", "optimizer") else "",
    )
