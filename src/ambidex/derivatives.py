"""Operations whose derivative is written by hand: autograd's chain of small operations reads memory far more often.

Each computes what its plain form in `model.py` computes, to rounding (tests/test_fast_paths.py), and takes part in
training on a CPU only (`products.using`). Arithmetic between products is fp32; ``dtype`` is what comes out.
Shapes in comments: B sequences, T tokens, H heads, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

QUERIES = 256  # rows of attention scores held at a time
FAINT = 1e-30  # a probability below it is near the smallest number, so its logarithm is taken from the logits


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``x / sqrt(mean(x^2) + epsilon) * weight`` over the last dimension, in fp32. x (..., W), weight (W,)."""
    return _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-any-return,no-untyped-call]


def rotate(x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype) -> Tensor:
    """RoPE. x (B, T, H, D), tables (T, D); returns (B, H, T, D)."""
    return _Rotate.apply(x, cosine, sine, dtype)  # type: ignore[no-any-return,no-untyped-call]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``, in their dtype."""
    return _SwiGlu.apply(gate, up)  # type: ignore[no-any-return,no-untyped-call]


def causal_attention(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention by plain batched products, all (B, H, T, D) of one low dtype.

    In bf16 it is twice to three times as fast as torch's flash kernel for the CPU, whose products are not oneDNN's
    (docs/experiments.md). Scores are made for `QUERIES` tokens at a time and, where there are more, made again for the
    gradient, so memory grows with T, not with T^2.
    """
    return attention_by(Softmax(_weights, _weights_back), queries, keys, values)


class Softmax(NamedTuple):
    """How scores become weights, and gradients go back: by torch here, by compiled passes in `fused/`.

    ``weights(block, keys, start)``: how much each token of a block (N, rows, D), the first of which is number ``start``,
    takes of each of the keys (N, seen, D): (N, rows, seen). ``back(weights, gradient, scale, start)``: the gradient by the
    products of queries and keys; it may be made in the place of the one by the weights.
    """

    weights: Callable[[Tensor, Tensor, int], Tensor]
    back: Callable[[Tensor, Tensor, float, int], Tensor]


def attention_by(softmax: Softmax, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """`causal_attention`, its softmax done by ``softmax``."""
    return _CausalAttention.apply(softmax, queries, keys, values)  # type: ignore[no-any-return,no-untyped-call]


def cross_entropy(
    logits: Tensor, targets: Tensor, ignored: int, learning: bool, again: Callable[[Tensor], Tensor]
) -> Tensor:
    """Summed loss, fp64 scalar, of logits (N, V) and targets (N,); where ``learning``, logits become its gradient, in place.

    ``again`` makes the logits of some rows (a mask, (N,)) a second time: of those whose probability is too small.
    """
    known = targets != ignored
    places = torch.arange(len(logits), device=logits.device), targets.clamp(min=0)  # rows and columns
    chances = torch.softmax(logits, dim=-1, out=logits)
    given = chances[places].double()  # (N,)
    faint = known & (given < FAINT)
    lost = -given.clamp(min=FAINT).log()
    if bool(faint.any()):
        lost[faint] = F.cross_entropy(again(faint).double(), places[1][faint], reduction="none")
    if learning:
        chances[places] -= 1  # by index: gather and scatter first copy the whole of a bf16 tensor
        if not bool(known.all()):
            chances.mul_(known.unsqueeze(1))
    return (lost * known).sum()


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        exact = x.float()
        length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)  # (..., 1)
        scale = (length.square_() / x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed: Tensor = (exact * scale).mul_(weight)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        width = x.shape[-1]
        unit = x.float() * scale  # the output before its weight
        by_output = gradient.float()
        by_weight = (by_output * unit).reshape(-1, width).sum(0)
        by_unit = by_output * weight
        along = torch.linalg.vecdot(by_unit, unit).unsqueeze_(-1).div_(-width)
        by_x = by_unit.addcmul_(unit, along).mul_(scale)
        return by_x.to(x.dtype), by_weight, None


class _Rotate(torch.autograd.Function):
    """The two halves of a head are the two coordinates, so a rotation is two products and a swap of halves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype) -> Tensor:
        cosine, sine = cosine.unsqueeze(1), _signed(sine).unsqueeze(1)  # (T, 1, D)
        ctx.save_for_backward(cosine, sine)
        ctx.x_dtype = x.dtype
        x = x.float()
        turned = (x * cosine).addcmul_(x.roll(x.shape[-1] // 2, -1), sine)  # (B, T, H, D)
        return turned.transpose(1, 2).to(dtype, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cosine, sine = ctx.saved_tensors
        back = gradient.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        turned = (back * cosine).addcmul_(back.roll(back.shape[-1] // 2, -1), sine, value=-1)
        return turned.to(ctx.x_dtype), None, None, None


def _signed(sine: Tensor) -> Tensor:
    first, second = sine.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        by_gate = torch.ops.aten.silu_backward(gradient * up, gate)
        return by_gate, F.silu(gate).mul_(gradient)


class _CausalAttention(torch.autograd.Function):
    """Where a sequence is one block its weights are kept; where it is more they are made again, or memory would grow with T^2."""

    @staticmethod
    def forward(ctx: Any, softmax: Softmax, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = (t.reshape(-1, *t.shape[2:]) for t in (queries, keys, values))  # (BH, T, D)
        blocks = _blocks(q.shape[1])
        kept = []
        if len(blocks) == 1:
            kept = [softmax.weights(q, k, 0)]  # (BH, T, T)
            mixed = kept[0] @ v
        else:
            mixed = torch.empty_like(q)
            for rows in blocks:
                # (BH, rows, keys up to the last row)
                weights = softmax.weights(q[:, rows], k[:, : rows.stop], rows.start)
                mixed[:, rows] = weights @ v[:, : rows.stop]
        ctx.softmax = softmax
        ctx.save_for_backward(q, k, v, *kept)
        return mixed.view(queries.shape)

    @staticmethod
    @once_differentiable  # a softmax of compiled code is a constant to autograd
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        outer = gradient.reshape(q.shape)
        if kept:
            found = _attention_back(ctx.softmax, kept[0], outer, q, k, v, 0)
        else:
            found = torch.empty_like(q), _zeros_in_fp32(k), _zeros_in_fp32(v)
            for rows in _blocks(q.shape[1]):
                block, seen = q[:, rows], slice(0, rows.stop)
                weights = ctx.softmax.weights(block, k[:, seen], rows.start)
                by_q, by_k, by_v = _attention_back(
                    ctx.softmax, weights, outer[:, rows], block, k[:, seen], v[:, seen], rows.start
                )
                found[0][:, rows] = by_q
                found[1][:, seen] += by_k
                found[2][:, seen] += by_v
        return None, *(t.to(q.dtype).view(gradient.shape) for t in found)


def _zeros_in_fp32(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.float32)


def _attention_back(
    softmax: Softmax, weights: Tensor, outer: Tensor, q: Tensor, k: Tensor, v: Tensor, start: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients by a block of queries, and its part of those by the keys and values that it sees."""
    by_scores = softmax.back(weights, outer @ v.mT, q.shape[-1] ** -0.5, start)
    return by_scores @ k, by_scores.mT @ q, weights.mT @ outer


def _blocks(length: int) -> list[slice]:
    return [slice(start, min(start + QUERIES, length)) for start in range(0, length, QUERIES)]


def _weights(block: Tensor, keys: Tensor, start: int) -> Tensor:
    hidden = torch.full(
        (block.shape[1], keys.shape[1]), float("-inf"), dtype=block.dtype, device=block.device
    )
    hidden = hidden.triu_(start + 1).expand(block.shape[0], -1, -1)
    scores = torch.baddbmm(hidden, block, keys.mT, alpha=block.shape[-1] ** -0.5)
    return torch.softmax(scores, dim=-1, out=scores)


def _weights_back(weights: Tensor, gradient: Tensor, scale: float, _start: int) -> Tensor:
    by_scores: Tensor = torch._softmax_backward_data(gradient, weights, -1, weights.dtype)
    return by_scores.mul_(scale)
