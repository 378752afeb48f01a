"""The same operations as `derivatives.py` and under the same names, each a pass of compiled code there and one back.

Shapes in comments: B sequences, T tokens, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ambidex.fused.passes import Passes

QUERIES = 256  # rows of attention scores held at a time


class Fused:
    """Operations by compiled passes."""

    def __init__(self, passes: Passes) -> None:
        self.passes = passes

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension, in fp32. x (..., W), weight (W,)."""
        return _RmsNorm.apply(self.passes, x, weight, epsilon)  # type: ignore[no-any-return,no-untyped-call]

    def rotate(self, x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype) -> Tensor:
        """RoPE. x (B, T, H, D), tables (T, D); returns (B, H, T, D)."""
        return _Rotate.apply(self.passes, x, cosine, sine, dtype)  # type: ignore[no-any-return,no-untyped-call]

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up``, in their dtype."""
        return _SwiGlu.apply(self.passes, gate, up)  # type: ignore[no-any-return,no-untyped-call]

    def causal_attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention by plain batched products, all (B, H, T, D) of one low dtype, as in `derivatives.py`."""
        return _CausalAttention.apply(self.passes, queries, keys, values)  # type: ignore[no-any-return,no-untyped-call]

    def cross_entropy(
        self,
        logits: Tensor,
        targets: Tensor,
        ignored: int,
        learning: bool,
        again: Callable[[Tensor], Tensor],  # noqa: ARG002
    ) -> Tensor:
        """Summed loss, fp64; where ``learning``, ``logits`` (N, V) become its gradient in place. ``again`` is not needed."""
        return self.passes.cross_entropy(logits, targets, ignored, learning).sum()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, scales = passes.rms_norm(x, weight, epsilon)
        ctx.passes = passes
        ctx.save_for_backward(x, weight, scales)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scales = ctx.saved_tensors
        return None, *ctx.passes.rms_norm_back(gradient, x, weight, scales), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, passes: Passes, x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype
    ) -> Tensor:
        ctx.passes, ctx.x_dtype = passes, x.dtype
        ctx.save_for_backward(cosine, sine)
        return passes.rotate(x, cosine, sine, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        return None, ctx.passes.rotate(gradient, cosine, sine, ctx.x_dtype, back=True), None, None, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, gate: Tensor, up: Tensor) -> Tensor:
        ctx.passes = passes
        ctx.save_for_backward(gate, up)
        return passes.swiglu(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.passes.swiglu_back(gradient, *ctx.saved_tensors)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, passes: Passes, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (queries, keys, values))  # (BH, T, D)
        ctx.passes, ctx.scale = passes, q.shape[-1] ** -0.5
        mixed = torch.empty_like(q)
        for rows in _blocks(q.shape[1]):
            weights = _weights(ctx, q, k, rows)  # (BH, rows, keys up to the last row)
            mixed[:, rows] = weights @ v[:, : rows.stop]
        ctx.save_for_backward(q, k, v)
        return mixed.view(queries.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        outer = gradient.reshape(q.shape)
        by_q = torch.empty_like(q)
        by_k, by_v = (torch.zeros_like(t, dtype=torch.float32) for t in (k, v))
        for rows in _blocks(q.shape[1]):
            seen = slice(0, rows.stop)
            weights = _weights(ctx, q, k, rows)
            by_v[:, seen] += weights.mT @ outer[:, rows]
            by_weights = outer[:, rows] @ v[:, seen].mT
            by_scores = ctx.passes.causal_softmax_back(weights, by_weights, ctx.scale, rows.start)
            by_q[:, rows] = by_scores @ k[:, seen]
            by_k[:, seen] += by_scores.mT @ q[:, rows]
        return None, *(t.to(q.dtype).view(gradient.shape) for t in (by_q, by_k, by_v))


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]


def _weights(ctx: Any, q: Tensor, k: Tensor, rows: slice) -> Tensor:
    """How much each token of a block takes of each one before: (BH, rows, up to the block's end)."""
    scores: Tensor = ctx.passes.causal_softmax(q[:, rows] @ k[:, : rows.stop].mT, ctx.scale, rows.start)
    return scores
