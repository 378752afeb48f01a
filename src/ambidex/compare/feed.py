"""Feeding a model with another run's tensors, so that the guilty part is told from those behind it.

At the boundary in front of every block stands a graft: forward, the block gets the reference's input instead of what
the block before it made; backward, the block before it gets the reference's gradient instead of what this block made.
The training's own code runs on all the while, micro-batches, autocast and loss included, so a fault shows in the
block that has it and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ambidex.compare.recorder import Recorder
from ambidex.compare.tensors import in_backward
from ambidex.parallel.group import Group


def boundaries(model: nn.Module) -> list[str]:
    """The modules in front of which a graft can stand: the items of the model's lists, and the norm after the last."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    names = {name for name, _ in model.named_modules()}
    found = []
    for parent in lists:
        found += [
            name for name in names if name.startswith(f"{parent}.") and name[len(parent) + 1 :].isdigit()
        ]
        after = parent.rpartition(".")[0] + ".norm"
        found += [after] if after in names else []
    return sorted(found, key=lambda name: [int(p) if p.isdigit() else -1 for p in name.split(".")][-1])


class _Graft(torch.autograd.Function):
    """Forward: the given value instead of ``x``. Backward: the given gradient, after ``report`` saw the real one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, gradient: Tensor, report: Any) -> Tensor:
        ctx.gradient, ctx.report = gradient, report
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *found: Any) -> Any:
        ctx.report(found[0])
        return ctx.gradient, None, None, None


class Taker:
    """Takes down what comes to each boundary in one step: the input, and the gradient with respect to it."""

    def __init__(self, model: nn.Module, group: Group) -> None:
        self._group = group
        self._parts: dict[str, list[Tensor]] = {}
        self._gradients: dict[str, dict[int, Tensor]] = {}
        modules = dict(model.named_modules())
        self._hooks = [
            modules[name].register_forward_pre_hook(self._take(name)) for name in boundaries(model)
        ]

    def _take(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            if in_backward() or not isinstance(arguments[0], Tensor):
                return
            x = arguments[0]
            parts = self._parts.setdefault(name, [])
            number = len(parts)
            parts.append(x.detach().cpu().clone())
            if x.requires_grad:
                gradients = self._gradients.setdefault(name, {})
                x.register_hook(  # type: ignore[no-untyped-call]
                    lambda found: found is None or gradients.update({number: found.detach().cpu().clone()})
                )

        return hook

    def done(self, rows: int) -> dict[str, Tensor]:
        """``input.NAME`` and ``gradient.NAME``, of the ``rows`` of the whole batch each."""
        for hook in self._hooks:
            hook.remove()
        inputs = {f"input.{name}": torch.cat(parts) for name, parts in self._parts.items()}
        gradients = {
            f"gradient.{name}": torch.cat([by_part[n] for n in sorted(by_part)])
            for name, by_part in self._gradients.items()
            if len(by_part) == len(self._parts[name])
        }
        return {name: self._group.whole(part, rows) for name, part in (inputs | gradients).items()}


class Feeder:
    """Puts the reference's tensors in at every boundary for one step, and its gradient in front of the optimizer."""

    def __init__(self, recorder: Recorder, fed: Mapping[str, Tensor]) -> None:
        self._recorder, self._fed = recorder, fed
        self._rows: dict[str, int] = {}
        whole = next((len(t) for name, t in fed.items() if name.startswith("input.")), 0)
        self._first = recorder.group.rows(whole).start  # this process's first row of the whole batch
        self._hooks: list[RemovableHandle] = []
        modules = dict(recorder.model.named_modules())
        for name in boundaries(recorder.model):
            if f"input.{name}" in fed and f"gradient.{name}" in fed:
                self._hooks.append(modules[name].register_forward_pre_hook(self._graft(name)))

    def _graft(self, name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> Any:
            x = arguments[0]
            first = self._rows.get(name, self._first)
            last = self._rows[name] = first + x.shape[0]
            value, gradient = (
                self._fed[f"{part}.{name}"][first:last].to(x.device, x.dtype)
                for part in ("input", "gradient")
            )
            if value.shape != x.shape:
                return None  # more or other rows than the reference had: nothing that could be fed
            maker = self._recorder.maker_of(x)
            start = first * (x.numel() // max(1, x.shape[0]))

            def report(found: Tensor) -> None:
                if maker is not None:
                    self._recorder.account("output_gradient", maker, found, start)

            if maker is not None:
                self._recorder.replaced.add(maker)
            return _Graft.apply(x, value, gradient, report), *arguments[1:]  # type: ignore[no-untyped-call]

        return hook

    def feed_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Give the optimizer the reference's gradients, now that the model's own are recorded."""
        for hook in self._hooks:
            hook.remove()
        for name, weight in self._recorder.model.named_parameters():
            if name in gradients and weight.grad is not None:
                weight.grad = gradients[name].to(weight.device, weight.dtype, copy=True)
