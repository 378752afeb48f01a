"""A micro-batch's work on an NVIDIA GPU, recorded once and from then on started as a whole: a CUDA graph.

A step of a small model is some two thousand kernels, and the host starts them more slowly than the GPU computes them.
A replay is the same kernels on the same memory, so the same bits; what it saves is the host's time for each.
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Learn(Protocol):
    """Adds the gradients of a micro-batch and returns its part of the loss."""

    def __call__(
        self, inputs: Tensor, targets: Tensor, predicted: int, scale: float | Tensor, among: Any = None, /
    ) -> Tensor:
        """``inputs`` and ``targets`` are (B, T), ``predicted`` the tokens that the loss is a mean over, ``scale`` the loss
        scale, ``among`` what the softmax runs over where that is not the whole vocabulary.
        """
        ...


Kind = tuple[tuple[int, ...], int]  # of a micro-batch: its shape, and the tokens of the mean
WARM_UPS = 2  # libraries make their handles and workspaces at first use, which cannot be recorded


@dataclass(frozen=True)
class Recording:
    """A graph with the memory that it reads and writes. ``gradients``: one for each weight, None where it has none."""

    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    targets: Tensor
    scale: Tensor
    loss: Tensor
    gradients: list[Tensor | None]


class Replayed:
    """``learn``, replayed. Where it cannot be recorded it is called as it is, and ``why_not`` says why."""

    def __init__(self, learn: Learn, weights: Sequence[Tensor]) -> None:
        self._learn, self._weights = learn, list(weights)
        self._recordings: dict[Kind, Recording] = {}
        self._updates = 0  # of the weights, so far begun
        self._first_in: dict[Kind, int] = {}
        self.why_not = ""

    def __call__(
        self, inputs: Tensor, targets: Tensor, predicted: int, scale: float | Tensor, among: object = None
    ) -> Tensor:
        if among is not None:
            self.why_not = "what a sampled softmax runs over is another number of tokens in each step"
            return self._learn(inputs, targets, predicted, scale, among)
        kind = (tuple(inputs.shape), predicted)
        self._updates += all(weight.grad is None for weight in self._weights)
        seen_before = self._first_in.setdefault(kind, self._updates) < self._updates
        # Not in its first update: the optimizer takes its memory in that one, and the graph may have what is left.
        if seen_before and not self.why_not and kind not in self._recordings:
            with torch.cuda.device(inputs.device):  # which need not be the current one
                self._record(kind, inputs, targets, scale)
        if kind not in self._recordings:
            return self._learn(inputs, targets, predicted, scale)
        recording = self._recordings[kind]
        before = [_apart(weight.grad, made) for weight, made in zip(self._weights, recording.gradients)]
        recording.inputs.copy_(inputs)
        recording.targets.copy_(targets)
        recording.scale.fill_(scale)
        recording.graph.replay()
        for weight, earlier, made in zip(self._weights, before, recording.gradients):
            weight.grad = made if earlier is None else earlier if made is None else earlier.add_(made)
        return recording.loss

    def _record(self, kind: Kind, inputs: Tensor, targets: Tensor, scale: float | Tensor) -> None:
        earlier = [weight.grad for weight in self._weights]
        given = inputs.clone(), targets.clone(), torch.full((), float(scale), device=inputs.device)
        stream = torch.cuda.Stream(inputs.device)  # type: ignore[no-untyped-call]
        try:
            stream.wait_stream(torch.cuda.current_stream(inputs.device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._forget_gradients()
                    self._learn(given[0], given[1], kind[1], given[2])
                self._forget_gradients()
            torch.cuda.current_stream(inputs.device).wait_stream(stream)
            self._recordings[kind] = self._captured(stream, given, kind[1])
        except _NotRecordedError as error:
            self.why_not = str(error)
            self._recordings.clear()
            with suppress(RuntimeError):
                torch.cuda.empty_cache()
        finally:
            for weight, gradient in zip(self._weights, earlier):
                weight.grad = gradient

    def _captured(
        self, stream: torch.cuda.Stream, given: tuple[Tensor, Tensor, Tensor], predicted: int
    ) -> Recording:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info()[0]
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, a saver's or a watchdog's, may go on with theirs meanwhile. The stream is entered here too, since
            # torch's own context does not leave it where a capture fails (seen in 2.13's torch/cuda/graphs.py).
            with (
                torch.cuda.stream(stream),
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
            ):
                loss = self._learn(given[0], given[1], predicted, given[2])
        except RuntimeError as error:  # an operation that cannot be recorded, or no memory for a second copy
            raise _NotRecordedError(first_line(error)) from None
        left = torch.cuda.mem_get_info()[0]
        # What a graph holds is never given back; an evaluation takes as much again, and gradients may be copied once.
        copied = sum(weight.numel() * weight.element_size() for weight in self._weights)
        if left < free - left + copied:
            raise _NotRecordedError(f"it would hold {(free - left) >> 20:,} MB and leave {left >> 20:,} MB")
        return Recording(graph, *given, loss, [weight.grad for weight in self._weights])

    def _forget_gradients(self) -> None:
        for weight in self._weights:
            weight.grad = None


class _NotRecordedError(Exception):
    """Why a micro-batch cannot be recorded."""


def first_line(error: BaseException) -> str:
    """What an error says, without its name of a backend and its trace."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line and not line.endswith("raised:")), type(error).__name__)


def _apart(gradient: Tensor | None, made: Tensor | None) -> Tensor | None:
    """What earlier micro-batches of the step gave, in a place that the replay does not write."""
    return gradient.clone() if gradient is not None and gradient is made else gradient
