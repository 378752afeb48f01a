"""The sum of all processes' gradients, sent while backward still makes the rest of them.

Large gradients go by themselves and in place, small ones some together. The order is fixed by the model, so that every
process sends the same thing at the same time, and the same bits come out of the same run twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from ambidex.parallel.group import GradientSum

SMALL = 1 << 20  # bytes: a gradient at least this large is sent by itself, from where it lies
TOGETHER = 4 << 20  # bytes of small gradients that are sent as one


class Pending(Protocol):
    """A sum on its way."""

    def wait(self) -> None: ...


class SharedGradientSum(GradientSum):
    """Sends a gradient off as soon as the last backward pass of the step has made it."""

    def __init__(self, add_up: Callable[[Tensor], Pending], model: nn.Module) -> None:
        """``add_up`` begins to replace a tensor by its sum over the processes, in place."""
        self._add_up = add_up
        self._parts = _parts([weight for weight in model.parameters() if weight.requires_grad])
        self._part_of = {weight: number for number, part in enumerate(self._parts) for weight in part}
        self._listening = False
        self._waiting: list[int] = []  # for each part: gradients that are still to be made
        self._begun = 0
        self._pending: list[tuple[Pending, Tensor, list[Tensor]]] = []

    @contextmanager
    def over(self, passes: int) -> Iterator[None]:
        if not self._listening:
            for weight in self._part_of:
                weight.register_post_accumulate_grad_hook(self._made)  # type: ignore[no-untyped-call]
            self._listening = True
        self._waiting = [passes * len(part) for part in self._parts]
        self._begun = 0
        self._pending.clear()
        yield
        self._waiting = [0] * len(self._parts)
        self._send()
        for pending, sent, gradients in self._pending:
            pending.wait()
            if sent is not gradients[0]:
                sizes = [gradient.numel() for gradient in gradients]
                for gradient, summed in zip(gradients, torch.split(sent, sizes)):
                    gradient.copy_(summed.view_as(gradient))
        self._pending.clear()

    def _made(self, weight: nn.Parameter) -> None:
        """Autograd has added one pass's gradient of a weight."""
        if self._begun < len(self._parts) and self._waiting:
            self._waiting[self._part_of[weight]] -= 1
            self._send()

    @torch.no_grad()
    def _send(self) -> None:
        while self._begun < len(self._parts) and self._waiting[self._begun] <= 0:
            gradients = [_gradient(weight) for weight in self._parts[self._begun]]
            alone = len(gradients) == 1 and gradients[0].is_contiguous()
            sent = gradients[0] if alone else torch.cat([gradient.reshape(-1) for gradient in gradients])
            self._pending.append((self._add_up(sent), sent, gradients))
            self._begun += 1


def _gradient(weight: Tensor) -> Tensor:
    if weight.grad is None:  # no path from the loss leads here; the others may have one
        weight.grad = torch.zeros_like(weight)
    return weight.grad


def _parts(weights: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """What is sent at once, in about the order in which backward makes gradients: the last layer's first."""
    parts: list[list[nn.Parameter]] = []
    small: list[nn.Parameter] = []
    for weight in reversed(weights):
        if weight.numel() * 4 >= SMALL:
            parts.append([weight])
            continue
        small.append(weight)
        if sum(one.numel() * 4 for one in small) >= TOGETHER:
            parts.append(small)
            small = []
    return parts + ([small] if small else [])
