"""Where a step of somebody's own loop begins and ends: hooks on the model, its parameters and the optimizers."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ambidex.compare.fingerprint import Fingerprint, fingerprint
from ambidex.compare.recorder import Recorder
from ambidex.compare.tensors import Array, array
from ambidex.compare.tracefile import MOST_RATES


class Loop:
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
        for name, weight in self._model.named_parameters():  # of which there may be more than before
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


def moments(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Whatever the optimizer keeps of a parameter's own shape, by its own name for it: exp_avg, momentum_buffer, ..."""
    found = {}
    for name, weight in model.named_parameters():
        for optimizer in optimizers:
            for kind, value in optimizer.state.get(weight, {}).items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    known = "momentum" if kind == "momentum_buffer" else str(kind).replace(".", "_")[:60]
                    found[f"{known}.{name}"] = value
    return found
