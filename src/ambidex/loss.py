"""The loss: summed cross-entropy, in nats, over the tokens that are to be predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ambidex import products
from ambidex.model import LanguageModel

IGNORED = -100  # a target that is not to be predicted: padding behind the last token of the held-out text
LOGITS = 2**24  # numbers of a chunk of logits: 512 tokens of a vocabulary of 32,768; larger was no faster


@dataclass(frozen=True)
class Among:
    """The tokens that a softmax runs over, (S,), and the logarithms of how many each stands for, (S,): `candidates.py`."""

    tokens: Tensor
    log_weights: Tensor


def cross_entropy_sum(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum, not mean, so that micro-batches and processes add up to the loss of the whole batch.

    ``hidden`` is (B, T, W), ``targets`` (B, T) int64. Returns a scalar in fp32.
    """
    return _sum_over(model.lm_head.weight, None, hidden, targets)


def sampled_cross_entropy_sum(model: LanguageModel, hidden: Tensor, places: Tensor, among: Among) -> Tensor:
    """The same over a part of the vocabulary, where ``places``, (B, T) int64, are those of the targets ``among`` it."""
    return _sum_over(model.lm_head.weight.index_select(0, among.tokens), among.log_weights, hidden, places)


def _sum_over(head: Tensor, log_weights: Tensor | None, hidden: Tensor, targets: Tensor) -> Tensor:
    answers = targets.flatten()  # (B*T,)
    if products.chosen() is None:
        logits = products.linear(hidden, head).flatten(0, 1).float()  # (B*T, V)
        if log_weights is not None:
            logits = logits + log_weights
        return F.cross_entropy(logits, answers, ignore_index=IGNORED, reduction="sum")
    rows = hidden.flatten(0, 1)  # (B*T, W)
    summed: Tensor = _ChunkedLoss.apply(rows, head, log_weights, answers, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return summed


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy that never holds all logits: a chunk's gradient is made, in the chunk's own place, and used up.

    The idea is Liger's fused linear cross-entropy (Hsu et al., 2024).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, log_weights: Tensor | None, targets: Tensor, learning: bool
    ) -> Tensor:
        chosen = products.chosen()
        assert chosen is not None
        multiply = products.onednn_product if chosen.onednn and chosen.low is None else _product
        head = weight.to(chosen.low or torch.float32)  # (V, W)
        rows = hidden.to(head.dtype)  # (N, W)
        by_rows = torch.empty_like(rows)
        by_head: Tensor | None = None
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        at_once = max(1, LOGITS // weight.shape[0])
        for some, by_some, answers in zip(*(_chunks(t, at_once) for t in (rows, by_rows, targets))):
            logits = multiply(some, head)  # (n, V), and their gradient from the next line on
            again = partial(_logits_of, some, head, log_weights)
            if log_weights is not None:
                logits += log_weights
            total += chosen.operations.cross_entropy(logits, answers, IGNORED, learning, again)
            if not learning:
                continue
            by_some.copy_(multiply(logits, head.t()))
            part = multiply(logits.t(), some.t())  # (V, W)
            by_head = part.float() if by_head is None else by_head.add_(part)
        if learning:
            ctx.save_for_backward(by_rows.to(hidden.dtype), by_head)
        return total.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight = ctx.saved_tensors
        return by_hidden * gradient, by_weight.mul_(gradient), None, None, None


def _chunks(rows: Tensor, at_once: int) -> Iterator[Tensor]:
    return (rows[start : start + at_once] for start in range(0, len(rows), at_once))


def _product(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.t()  # F.linear would first lay out a transposed x anew


def _logits_of(rows: Tensor, head: Tensor, log_weights: Tensor | None, which: Tensor) -> Tensor:
    return F.linear(rows[which], head) if log_weights is None else F.linear(rows[which], head) + log_weights
