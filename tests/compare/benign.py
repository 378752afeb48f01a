"""Honest variations of a training: other roundings, the same mathematics. None may be called different."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw as adamw_of_torch

from ambidex import derivatives, launch, loss, model, optim, trainer

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Benign:
    name: str
    change: Callable[[Patch], None] = lambda patch: None
    settings: dict[str, Any] = field(default_factory=dict)
    is_honest: Callable[[], bool] = lambda: True  # on this machine


def with_built(change: Callable[[Any], None]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        original = launch.build

        def build(*a: Any, **k: Any) -> Any:
            found = original(*a, **k)
            change(found)
            return found

        patch.setattr(launch, "build", build)

    return plant


def adamw(**switches: bool) -> Callable[[Patch], None]:
    """Torch's other ways of the same update, in the place of its fused kernel."""

    def change(t: Any) -> None:
        inner = t.optimizer._adamw

        def together(names: list[str], rate: float, weight_decay: float) -> None:
            weights = [inner.named[name] for name in names]
            moments = [inner.moments[name] for name in names]
            adamw_of_torch(
                weights, [weight.grad for weight in weights], [m for m, _ in moments], [v for _, v in moments], [],
                [inner.steps[name] for name in names], **switches, amsgrad=False, beta1=inner.betas[0],
                beta2=inner.betas[1], lr=rate, weight_decay=weight_decay, eps=inner.epsilon, maximize=False,
            )  # fmt: skip

        inner._step_together = together

    return with_built(change)


def replaced(owner: Any, name: str, by: Callable[..., Any]) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, by)


def attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: None = None, is_causal: bool = False, **_: Any
) -> Tensor:
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~allowed, float("-inf"))
    return scores.softmax(-1).to(v.dtype) @ v


def cross_entropy_sum(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = model.logits(hidden).flatten(0, 1).float()
    answers = targets.flatten()
    chosen = logits.gather(1, answers.clamp_min(0)[:, None]).squeeze(1)
    return ((torch.logsumexp(logits, -1) - chosen) * (answers >= 0)).sum()


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight


def gradient_norm(gradients: Any) -> Tensor:
    return torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt()


def in_halves(patch: Patch) -> None:
    def halves(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        half = x.shape[-1] // 2
        return tuple(a + b for a, b in zip(whole(x[..., :half].contiguous(), *(w[:, :half].contiguous() for w in weights)),
                                           whole(x[..., half:].contiguous(), *(w[:, half:].contiguous() for w in weights))))  # fmt: skip

    whole = model.linears
    patch.setattr(model, "linears", halves)


def precision(name: str) -> Callable[[Patch], None]:
    return with_built(lambda t: torch.set_float32_matmul_precision(name))


def still_exact(name: str) -> Callable[[], bool]:
    """Whether fp32 products stay fp32: with AMX torch takes "medium" at its word and multiplies in bf16, which is a fault."""

    def look() -> bool:
        before = torch.get_float32_matmul_precision()
        rows = torch.linspace(-1, 1, 64 * 64).view(64, 64)
        try:
            torch.set_float32_matmul_precision(name)
            return bool((rows @ rows - (rows.double() @ rows.double())).abs().max() < 1e-4)
        finally:
            torch.set_float32_matmul_precision(before)

    return look


def math_attention(patch: Patch) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    original = F.scaled_dot_product_attention

    def by_math(*a: Any, **k: Any) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return original(*a, **k)

    patch.setattr(F, "scaled_dot_product_attention", by_math)


def attention_in_double(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    return attention(q.double(), k.double(), v.double(), is_causal=causal).to(v.dtype)


def norm_in_double(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.double()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon) * weight.double()).float()


def loss_in_double(model: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = model.logits(hidden).flatten(0, 1).double()
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum").float()


def products_by(*, onednn: bool) -> Callable[[Patch], None]:
    def change(t: Any) -> None:
        if t.device.products is not None:
            t.device.products = replace(t.device.products, onednn=onednn)

    return with_built(change)


def joined(patch: Patch) -> None:
    """What a fused layer does: one product by the weights laid below each other."""

    def together(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return tuple(whole(x, torch.cat(weights))[0].split([len(w) for w in weights], dim=-1))

    whole = model.linears
    patch.setattr(model, "linears", together)


def one_further(length: int, head_width: int, base: float) -> tuple[Tensor, Tensor]:
    """Only the distance of two tokens counts."""
    cosine, sine = ROTATION_TABLES(length + 1, head_width, base)
    return cosine[1:], sine[1:]


ROTATION_TABLES = model.rotation_tables


def one_matrix_at_a_time(patch: Patch) -> None:
    original = optim.orthogonalise
    patch.setattr(
        optim, "orthogonalise", lambda stack, *a: torch.cat([original(one[None], *a) for one in stack])
    )


def norm_by_torch(gradients: Any) -> Tensor:
    return (
        torch.nn.utils.get_total_norm(gradients)
        if hasattr(torch.nn.utils, "get_total_norm")
        else gradient_norm(gradients)
    )


BENIGN = [
    Benign("the same again"),
    Benign("two threads", settings={"threads": 2}),
    Benign("micro-batches of 4", settings={"micro_batch_size": 4}),
    Benign("micro-batches of 2", settings={"micro_batch_size": 2}),
    Benign("micro-batches of 1", settings={"micro_batch_size": 1}),
    Benign("attention by hand", replaced(F, "scaled_dot_product_attention", attention)),
    Benign("unfused AdamW, many tensors at once", adamw(fused=False, foreach=True)),
    Benign("unfused AdamW, one tensor at a time", adamw(fused=False, foreach=False)),
    Benign("matmul precision high", precision("high"), is_honest=still_exact("high")),
    Benign("matmul precision medium", precision("medium"), is_honest=still_exact("medium")),
    Benign(
        "SwiGLU by hand", replaced(derivatives, "swiglu", lambda gate, up: gate * torch.sigmoid(gate) * up)
    ),
    Benign("norm by hand", replaced(derivatives, "rms_norm", rms_norm)),
    Benign("cross-entropy by hand", replaced(trainer, "cross_entropy_sum", cross_entropy_sum)),
    Benign("gradient norm by hand", replaced(optim, "gradient_norm", gradient_norm)),
    Benign("products in two halves", in_halves),
    Benign("torch's own products and derivatives", with_built(lambda t: setattr(t.device, "products", None))),
    Benign("four threads", settings={"threads": 4}),
    Benign("torch's math kernel for attention", math_attention),
    Benign("attention in fp64", replaced(model, "attend", attention_in_double)),
    Benign("norm in fp64", replaced(derivatives, "rms_norm", norm_in_double)),
    Benign("loss in fp64", replaced(trainer, "cross_entropy_sum", loss_in_double)),
    Benign("loss in small chunks", replaced(loss, "LOGITS", 2**13)),
    Benign("attention in blocks of 8", replaced(derivatives, "QUERIES", 8)),
    Benign("products by torch's default", products_by(onednn=False)),
    Benign("products by oneDNN", products_by(onednn=True)),
    Benign("oneDNN switched off in torch", replaced(torch.backends.mkldnn, "enabled", False)),
    Benign("queries, keys and values in one product", joined),
    Benign("rotary angles of positions one further", replaced(model, "rotation_tables", one_further)),
    Benign("Muon's matrices one at a time", one_matrix_at_a_time),
    Benign("torch's own clipping", replaced(optim, "gradient_norm", norm_by_torch)),
    Benign("denormals flushed to zero", with_built(lambda t: torch.set_flush_denormal(True))),
    Benign("compiled", settings={"compile": True}),
    Benign("compiled passes between products", settings={"fused": True}),
]
ENVIRONMENTS = {
    "AVX2 in torch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "no AVX in torch": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 in oneDNN": {"DNNL_MAX_CPU_ISA": "AVX2"},
    "AVX2 in MKL": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL's compatible code": {"MKL_CBWR": "COMPATIBLE"},
    "oneDNN without AVX": {"DNNL_MAX_CPU_ISA": "SSE41"},
    "no AVX anywhere": {
        "ATEN_CPU_CAPABILITY": "default",
        "DNNL_MAX_CPU_ISA": "SSE41",
        "MKL_CBWR": "COMPATIBLE",
    },
}
