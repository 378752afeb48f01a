"""The matrix products of linear layers on a CPU: which numbers they take, and which library multiplies them.

Shapes in comments: N rows, K inputs, M outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ambidex import derivatives

FEW_ROWS = 32  # fewer rows than this read a weight once: casting it first would cost more than the product


class Operations(Protocol):
    """What is computed between products: by torch's own (`derivatives.py`) or by compiled passes (`fused/`)."""

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor: ...

    def rotate(self, x: Tensor, cosine: Tensor, sine: Tensor, dtype: torch.dtype) -> Tensor: ...

    def swiglu(self, gate: Tensor, up: Tensor) -> Tensor: ...

    def causal_attention(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor: ...

    def cross_entropy(
        self, logits: Tensor, targets: Tensor, ignored: int, learning: bool, again: Callable[[Tensor], Tensor]
    ) -> Tensor: ...


@dataclass(frozen=True)
class Products:
    """How products are done while it is chosen: in ``low`` precision, or else exactly in fp32, by oneDNN or by default,
    where ``weights_by_default`` holds for those that give a weight its gradient. And by what ``operations`` the rest is.

    Weights stay fp32 and are cast once a forward pass. Copies that outlive the pass were measured and left out: they
    save one percent, and go stale when something else than our optimizer writes a weight (docs/experiments.md).
    """

    low: torch.dtype | None
    onednn: bool
    operations: Operations = derivatives
    weights_by_default: bool = False


Listener = Callable[[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]], None]  # x, weights, products

_chosen: ContextVar[Products | None] = ContextVar("products", default=None)
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def chosen() -> Products | None:
    """What `using` chose, or None: then layers compute in torch's plain way, which autocast and compile understand."""
    return _chosen.get()


@contextmanager
def using(products: Products) -> Iterator[None]:
    token = _chosen.set(products)
    try:
        yield
    finally:
        _chosen.reset(token)


def tell(listener: Listener | None) -> None:
    """Have ``listener`` told of every product from now on; None: nobody. Joined products call no module to hook."""
    _listener.set(listener)


def linear(x: Tensor, weight: Tensor) -> Tensor:  # (..., K), (M, K) -> (..., M)
    return linears(x, weight)[0]


def linears(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """``x`` times each weight, transposed. In low precision the weights are joined, so that it is one product."""
    found = _multiplied(x, *weights)
    if (listener := _listener.get()) is not None:
        listener(x, weights, found)
    return found


def _multiplied(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    products = _chosen.get()
    if products is None:
        return tuple(F.linear(x, weight) for weight in weights)
    if products.low is None:
        if not products.onednn:
            return tuple(F.linear(x, weight) for weight in weights)
        return tuple(_OneDnnProduct.apply(x, weight, products.weights_by_default) for weight in weights)  # type: ignore[no-untyped-call]
    if not torch.is_grad_enabled() and x.numel() < FEW_ROWS * x.shape[-1]:
        return tuple(F.linear(x.float(), weight).to(products.low) for weight in weights)
    together: Tensor = _LowProduct.apply(x, products.low, *weights)  # type: ignore[no-untyped-call]
    if len(weights) == 1:
        return (together,)
    return _Parts.apply(together, *(weight.shape[0] for weight in weights))  # type: ignore[no-any-return,no-untyped-call]


def join(weights: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Weights of one width below each other, cast: (M1 + M2 + ..., K)."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    rows = sum(weight.shape[0] for weight in weights)
    joined = torch.empty(rows, weights[0].shape[1], dtype=dtype, device=weights[0].device)
    for part, weight in zip(torch.split(joined, [weight.shape[0] for weight in weights]), weights):
        part.copy_(weight)
    return joined


class _Parts(torch.autograd.Function):
    """The columns of a joined product, (..., M1 + M2 + ...): torch.split, but gradients that lie as they would be laid out stay there."""

    @staticmethod
    def forward(_ctx: Any, together: Tensor, *sizes: int) -> tuple[Tensor, ...]:
        return torch.split(together, list(sizes), dim=-1)

    @staticmethod
    @once_differentiable  # what is not joined anew has the graph of one part alone
    def backward(_ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return side_by_side(gradients), *(None for _ in gradients)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """`torch.cat` by the last dimension, without a copy where the parts are columns of one tensor already."""
    first = parts[0]
    wide = (*first.shape[:-1], sum(part.shape[-1] for part in parts))
    strides = [1] * len(wide)
    for n in range(len(wide) - 2, -1, -1):
        strides[n] = strides[n + 1] * wide[n + 1]
    storage, place = first.untyped_storage().data_ptr(), first.storage_offset()
    for part in parts:
        where = part.untyped_storage().data_ptr(), part.storage_offset(), list(part.stride()), part.dtype
        if where != (storage, place, strides, first.dtype):
            return torch.cat(list(parts), dim=-1)
        place += part.shape[-1]
    return first.as_strided(wide, strides)


class _LowProduct(torch.autograd.Function):
    """x (..., K) times joined weights, all cast; weights get their gradients in fp32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        joined = join(weights, dtype)  # (M, K)
        rows = x.reshape(-1, x.shape[-1]).to(dtype)  # (N, K)
        ctx.save_for_backward(rows, joined)
        ctx.x_dtype, ctx.sizes = x.dtype, [weight.shape[0] for weight in weights]
        return (rows @ joined.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, joined = ctx.saved_tensors
        outer = gradient.reshape(-1, gradient.shape[-1])  # (N, M)
        by_x = (outer @ joined).to(ctx.x_dtype).view(*gradient.shape[:-1], -1)
        by_weights = torch.split(outer.t() @ rows, ctx.sizes)
        return by_x, None, *(part.float() for part in by_weights)


class _OneDnnProduct(torch.autograd.Function):
    """x (..., K) times weight (M, K) transposed, in exact fp32 by oneDNN, and both gradients, the weight's ``by_default``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, by_default: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.by_default = by_default
        return onednn_product(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        outer = gradient.reshape(-1, gradient.shape[-1])  # (N, M)
        rows = x.reshape(-1, x.shape[-1])  # (N, K)
        by_x = onednn_product(outer, weight.t()).view(x.shape)
        by_weight = outer.t() @ rows if ctx.by_default else onednn_product(outer.t(), rows.t())
        return by_x, by_weight, None


def onednn_product(x: Tensor, weight: Tensor) -> Tensor:  # (..., K), (M, K) -> (..., M)
    """F.linear in fp32 through oneDNN, whatever library torch's own rule would take."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")  # type: ignore[no-any-return]


def has_onednn_product() -> bool:
    """Whether this build has it and it computes the right thing: builds without oneDNN know the name alone."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    x = torch.arange(6.0).view(2, 3)
    try:
        return torch.equal(onednn_product(x, x), x @ x.t())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
