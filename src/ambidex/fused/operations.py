"""The same operations as `derivatives.py` and under the same names, each a pass of compiled code there and one back.

Shapes in comments: B sequences, T tokens, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ambidex.derivatives import Softmax, attention_by
from ambidex.fused.passes import Passes


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
        return attention_by(Softmax(self._weights, self.passes.causal_softmax_back), queries, keys, values)

    def directions(
        self, gradients: list[Tensor], momenta: list[Tensor], keep: float, dtype: torch.dtype
    ) -> Tensor:
        return self.passes.muon_directions(gradients, momenta, keep, dtype)

    def move(self, weights: list[Tensor], updates: Tensor, keep: float, rate: float) -> None:
        self.passes.muon_move(weights, updates, keep, rate)

    def _weights(self, block: Tensor, keys: Tensor, start: int) -> Tensor:
        return self.passes.causal_softmax(block @ keys.mT, block.shape[-1] ** -0.5, start)

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
