"""The compiled passes as functions of tensors. `operations.py` makes of them what autograd understands.

Shapes in comments: N rows, W numbers of a row, B sequences, T tokens, H heads, D width of a head.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
from collections.abc import Sequence
from ctypes import c_double, c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from ambidex.fused.compiler import is_ours

BLOCKS = 64  # as in passes.c
NO_MEMORY, NO_CLASS = 1, 2  # what a pass answers, as there
HASH_BYTES = 32  # sha256, behind the code
_TAKES = {
    "rms_norm": [c_void_p, c_int, c_int64, c_int64, c_void_p, c_float, c_void_p, c_void_p, c_int64, c_int64],
    "rms_norm_back": [c_void_p, c_int, c_void_p, c_int, c_int64, c_int64, *[c_void_p] * 4, c_int64, c_int64],
    "rotate": [c_void_p, c_int, c_void_p, c_void_p, c_void_p, c_int, *[c_int64] * 4, c_int],
    "swiglu": [c_void_p, c_int64, c_void_p, c_int64, c_int, c_void_p, c_int64, c_int64],
    "swiglu_back": [c_void_p, c_void_p, c_int64, c_void_p, c_int64, c_int, c_void_p, c_void_p, *[c_int64] * 3],
    "causal_softmax": [c_void_p, c_int, c_float, *[c_int64] * 4],
    "causal_softmax_back": [c_void_p, c_void_p, c_int, c_float, *[c_int64] * 4],
    "cross_entropy": [c_void_p, c_int, c_void_p, c_int64, c_void_p, c_int64, c_int64, c_int],
    "muon_directions": [c_void_p, c_void_p, c_double, c_void_p, c_int, c_void_p, c_int64, c_int64],
    "muon_move": [c_void_p, c_void_p, c_int, c_float, c_float, c_int64, c_int64],
}  # fmt: skip


class Passes:
    """`passes.c`, loaded. Every method takes CPU tensors in fp32 or bf16 and raises MemoryError where it has too little."""

    def __init__(self, path: Path, remove: Path | None = None) -> None:
        """Load what `compiler.build` made, and remove the folder ``remove``. Raises OSError where it does not load."""
        try:
            opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)  # for good: see below
            if not is_ours(os.fstat(opened)):
                os.close(opened)
                raise PermissionError(f"{path.name} could have been written by others")
            with os.fdopen(opened, "rb", closefd=False) as file:
                whole = file.read()
            code, end = whole[:-HASH_BYTES], whole[-HASH_BYTES:]
            if hashlib.sha256(code).digest() != end:
                os.close(opened)
                raise OSError(f"{path.name} is not as it was made")
            self.digest = end.hex()[:12]
            # By the open file, not by its name, which may by now be another's; and a number that is used again would be
            # taken for the library loaded under it first.
            self._library = ctypes.CDLL(f"/proc/self/fd/{opened}")
        finally:
            if remove is not None:
                shutil.rmtree(remove, ignore_errors=True)
        for name, takes in _TAKES.items():
            getattr(self._library, name).argtypes = [*takes, c_int]

    def _call(self, name: str, *arguments: object) -> None:
        answer = getattr(self._library, name)(*arguments, torch.get_num_threads())
        if answer & NO_CLASS:
            raise IndexError("a target is no class of the logits")
        if answer & NO_MEMORY:
            raise MemoryError(f"{name}: no memory for a row")

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        """x (..., W) to its norm in fp32, of the same shape, and the reciprocal roots (N,)."""
        x, inner, stride = _grouped(x)
        _fits(weight, x.shape[-1:])
        out = _empty(x.shape, torch.float32)
        scales = _empty((x.numel() // x.shape[-1],), torch.float32)
        self._call("rms_norm", x.data_ptr(), _low(x), inner, stride, weight.data_ptr(), epsilon, out.data_ptr(),
                   scales.data_ptr(), len(scales), x.shape[-1])  # fmt: skip
        return out, scales

    def rms_norm_back(
        self, gradient: Tensor, x: Tensor, weight: Tensor, scales: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradients by x (..., W), in its type, and by the weight (W,) in fp32."""
        (x, inner, stride), gradient, width = _grouped(x), gradient.contiguous(), x.shape[-1]
        _fits(weight, x.shape[-1:])
        by_x = _empty(x.shape, x.dtype)
        sums = _empty((BLOCKS + 1, width), torch.float32)
        self._call("rms_norm_back", gradient.data_ptr(), _low(gradient), x.data_ptr(), _low(x), inner, stride,
                   weight.data_ptr(), scales.data_ptr(), by_x.data_ptr(), sums.data_ptr(), len(scales), width)  # fmt: skip
        return by_x, sums[0].clone()  # or a gradient would keep all of them

    def rotate(
        self, x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype, back: bool = False
    ) -> Tensor:
        """x (B, T, H, D) to (B, H, T, D), turned; ``back``: the gradient's way from (B, H, T, D). Tables (T, D) fp32."""
        x = x.contiguous()
        batch, length, heads, width = (
            x.shape if not back else (x.shape[0], x.shape[2], x.shape[1], x.shape[3])
        )
        shape = (batch, length, heads, width) if back else (batch, heads, length, width)
        for table in (cosine, sine):
            _fits(table, (length, width))
        turned = _empty(shape, dtype)
        self._call("rotate", x.data_ptr(), _low(x), cosine.data_ptr(), sine.data_ptr(), turned.data_ptr(), _low(turned),
                   batch, length, heads, width, back)  # fmt: skip
        return turned

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor:
        """``silu(gate) * up``, (..., W) of one type."""
        (gate, gate_stride), (up, up_stride) = _rows(gate), _rows(up)
        _same(gate, up)
        out = _empty(gate.shape, gate.dtype)
        width = gate.shape[-1]
        self._call("swiglu", gate.data_ptr(), gate_stride, up.data_ptr(), up_stride, _low(gate), out.data_ptr(),
                   gate.numel() // width, width)  # fmt: skip
        return out

    def swiglu_back(self, gradient: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        """Both gradients, in the type of both, side by side in memory: `products.py` need not lay them out again."""
        (gate, gate_stride), (up, up_stride), gradient = _rows(gate), _rows(up), gradient.contiguous()
        _same(gate, up)
        _same(gate, gradient)
        width = gate.shape[-1]
        both = _empty((*gate.shape[:-1], 2 * width), gate.dtype)
        by_gate, by_up = both[..., :width], both[..., width:]
        self._call("swiglu_back", gradient.data_ptr(), gate.data_ptr(), gate_stride, up.data_ptr(), up_stride, _low(gate),
                   by_gate.data_ptr(), by_up.data_ptr(), 2 * width, gate.numel() // width, width)  # fmt: skip
        return by_gate, by_up

    def causal_softmax(self, scores: Tensor, scale: float, seen: int) -> Tensor:
        """In place, (N, rows, columns): row r becomes the softmax of ``scale`` times its first ``seen + r + 1`` columns."""
        self._call("causal_softmax", scores.data_ptr(), _low(scores), scale, seen, *scores.shape)
        return scores

    def causal_softmax_back(self, weights: Tensor, gradient: Tensor, scale: float, seen: int) -> Tensor:
        """In place: ``gradient`` by the weights becomes the one by the scores before they were scaled."""
        self._call("causal_softmax_back", weights.data_ptr(), gradient.data_ptr(), _low(gradient), scale, seen,
                   *gradient.shape)  # fmt: skip
        return gradient

    def cross_entropy(self, logits: Tensor, targets: Tensor, ignored: int, learning: bool) -> Tensor:
        """Loss of each row (N,), fp64; ``learning``: ``logits`` (N, W) become the gradient of their sum, in place."""
        if targets.shape != logits.shape[:1] or targets.dtype != torch.int64 or not logits.is_contiguous():
            raise ValueError(
                f"targets {tuple(targets.shape)} {targets.dtype} for logits {tuple(logits.shape)}"
            )
        losses = _empty(targets.shape, torch.float64)
        targets = targets.contiguous()
        self._call("cross_entropy", logits.data_ptr(), _low(logits), targets.data_ptr(), ignored, losses.data_ptr(),
                   *logits.shape, learning)  # fmt: skip
        return losses

    def muon_directions(
        self, gradients: list[Tensor], momenta: list[Tensor], keep: float, dtype: torch.dtype
    ) -> Tensor:
        """As `optim.directions`: momenta are moved in place; (N, rows, columns) of norm 1 each come out in ``dtype``."""
        gradients = [gradient.contiguous() for gradient in gradients]
        shape = gradients[0].shape
        for matrix in (*gradients, *momenta):
            _fits(matrix, shape)
        out = _empty((len(gradients), *shape), dtype)
        sums = _empty((len(gradients), BLOCKS), torch.float64)
        self._call("muon_directions", _pointers(gradients), _pointers(momenta), keep, out.data_ptr(), _low(out),
                   sums.data_ptr(), len(gradients), shape.numel())  # fmt: skip
        return out

    def muon_move(self, weights: list[Tensor], updates: Tensor, keep: float, rate: float) -> None:
        """As `optim.move`: every weight, in place, ``keep`` times itself less ``rate`` times its part of (N, rows, columns)."""
        for weight in weights:
            _fits(weight, updates.shape[1:])
        updates = updates.contiguous()
        self._call("muon_move", _pointers(weights), updates.data_ptr(), _low(updates), keep, rate, len(weights),
                   weights[0].numel())  # fmt: skip


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    for tensor in tensors:
        _low(tensor)
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _low(x: Tensor) -> int:
    """Whether x is bf16 rather than fp32. Raises TypeError for anything else: what follows is a bare pointer."""
    if x.dtype not in (torch.float32, torch.bfloat16) or x.device.type != "cpu":
        raise TypeError(f"compiled passes know fp32 and bf16 on a CPU, not {x.dtype} on {x.device}")
    return int(x.dtype == torch.bfloat16)


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """On the CPU and of this type, whatever the defaults of the program around us are."""
    return torch.empty(tuple(shape), dtype=dtype, device="cpu")


def _fits(table: Tensor, shape: Sequence[int]) -> None:
    if tuple(table.shape) != tuple(shape) or table.dtype != torch.float32 or not table.is_contiguous():
        raise ValueError(
            f"{tuple(table.shape)} {table.dtype}, where fp32 numbers of {tuple(shape)} in a row are needed"
        )


def _same(one: Tensor, other: Tensor) -> None:
    if one.shape != other.shape or one.dtype != other.dtype:
        raise ValueError(f"{tuple(one.shape)} {one.dtype} beside {tuple(other.shape)} {other.dtype}")


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """x (..., W) and the distance between its rows: a slice of the last dimension needs no copy."""
    return (x, _stride(x)) if _stride(x) else (x.contiguous(), x.shape[-1])


def _stride(x: Tensor) -> int:
    """The one distance between all rows of x, or 0 where there is none."""
    if x.stride(-1) != 1 or x.ndim < 2:
        return 0
    stride = x.stride(-2)
    for dimension in range(x.ndim - 2, 0, -1):
        if x.stride(dimension - 1) != x.stride(dimension) * x.shape[dimension]:
            return 0
    return stride


def _grouped(x: Tensor) -> tuple[Tensor, int, int]:
    """x (..., W), rows that lie next to each other, and the distance between such groups: heads inside a wider product."""
    if stride := _stride(x):
        return x, 1, stride
    heads = x.ndim == 4 and x.stride(-1) == 1 and x.stride(2) == x.shape[3]
    if heads and x.stride(0) == x.stride(1) * x.shape[1]:
        return x, x.shape[2], x.stride(1)
    return x.contiguous(), 1, x.shape[-1]
