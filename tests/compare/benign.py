"""Honest variations of a training: other roundings, the same mathematics. None may be called different."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.adamw import adamw as adamw_of_torch

from ambidex import derivatives, launch, model, optim, trainer

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Benign:
    name: str
    change: Callable[[Patch], None] = lambda patch: None
    settings: dict[str, Any] = field(default_factory=dict)


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


BENIGN = [
    Benign("the same again"),
    Benign("two threads", settings={"threads": 2}),
    Benign("micro-batches of 4", settings={"micro_batch_size": 4}),
    Benign("micro-batches of 2", settings={"micro_batch_size": 2}),
    Benign("micro-batches of 1", settings={"micro_batch_size": 1}),
    Benign("attention by hand", replaced(F, "scaled_dot_product_attention", attention)),
    Benign("unfused AdamW, many tensors at once", adamw(fused=False, foreach=True)),
    Benign("unfused AdamW, one tensor at a time", adamw(fused=False, foreach=False)),
    Benign("matmul precision high", precision("high")),
    Benign("matmul precision medium", precision("medium")),
    Benign(
        "SwiGLU by hand", replaced(derivatives, "swiglu", lambda gate, up: gate * torch.sigmoid(gate) * up)
    ),
    Benign("norm by hand", replaced(derivatives, "rms_norm", rms_norm)),
    Benign("cross-entropy by hand", replaced(trainer, "cross_entropy_sum", cross_entropy_sum)),
    Benign("gradient norm by hand", replaced(optim, "gradient_norm", gradient_norm)),
    Benign("products in two halves", in_halves),
    Benign("torch's own products and derivatives", with_built(lambda t: setattr(t.device, "products", None))),
    Benign("compiled", settings={"compile": True}),
]
ENVIRONMENTS = {
    "AVX2 in torch": {"ATEN_CPU_CAPABILITY": "avx2"},
    "no AVX in torch": {"ATEN_CPU_CAPABILITY": "default"},
    "AVX2 in oneDNN": {"DNNL_MAX_CPU_ISA": "AVX2"},
    "AVX2 in MKL": {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "MKL's compatible code": {"MKL_CBWR": "COMPATIBLE"},
}
