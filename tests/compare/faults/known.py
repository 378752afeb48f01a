"""Faults on which the judge's rules were tried while they were made.

``stage`` and ``module`` are what an honest report must name; an empty module means that no one module is at fault.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ambidex import derivatives, launch, model, optim, trainer
from ambidex.text.batches import Batches
from faults.planting import LAST, Fault, adamw, around, gradient, in_layer, with_built


def norm_epsilon(t: trainer.Trainer) -> None:
    t.model.get_submodule("model.layers.1.input_layernorm").epsilon = 1e-5


def stale(t: trainer.Trainer) -> None:
    norm = t.model.get_submodule(STALE)
    kept: dict[str, Any] = {"now": None, "before": None, "step": -1}

    def forward(x: torch.Tensor) -> torch.Tensor:
        if kept["step"] != t.step:
            kept["before"] = kept["now"] if kept["step"] == t.step - 1 else None
            kept["now"], kept["step"] = norm.weight.detach().clone(), t.step
        late = 0 if kept["before"] is None else kept["before"] - norm.weight.detach()
        return F.rms_norm(x, norm.weight.shape, norm.weight + late, norm.epsilon)

    norm.forward = forward


def dropped_update(original: Any, self: Any, rate: float) -> None:
    weight = self.named["model.layers.1.self_attn.o_proj.weight"]
    before = weight.detach().clone()
    original(self, rate)
    with torch.no_grad():
        weight.copy_(before)


def without_bias_correction(original: Any, self: Any, rate: float) -> None:
    beta1, beta2 = self._adamw.betas
    step = self.steps_taken + 1
    factor = (1 - beta1**step) / (1 - beta2**step) ** 0.5
    together = self._adamw._step_together
    self._adamw._step_together = lambda names, rate, decay: together(names, rate * factor, decay / factor)
    try:
        original(self, rate)
    finally:
        del self._adamw._step_together


def decay_on_norms(t: trainer.Trainer) -> None:
    together = t.optimizer._adamw._step_together
    t.optimizer._adamw._step_together = lambda names, rate, decay: together(names, rate, decay or 0.1)  # type: ignore[method-assign]


def accumulated_twice(original: Any, self: Any, inputs: Any, targets: Any) -> float:
    original(self, inputs, targets)
    return float(original(self, inputs, targets))


def forgetful(original: Any, self: Any, rate: float) -> None:
    if self.steps_taken:
        for first, second in self._adamw.moments.values():
            first.zero_()
            second.zero_()
    original(self, rate)


def smoothed(original: Any, head: Any, hidden: Any, targets: Any) -> Any:
    logits = head.logits(hidden).flatten(0, 1).float()
    return F.cross_entropy(
        logits, targets.flatten(), ignore_index=-100, reduction="sum", label_smoothing=1e-4
    )


def shifted(original: Any, self: Any, step: int) -> Any:
    inputs, targets = original(self, step)
    return np.roll(inputs, 1, axis=1), targets


def looks_ahead(original: Any, q: Any, k: Any, v: Any, causal: bool) -> Any:
    mask = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def low_precision(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().to(x.dtype)


def noisy_dropout(x: torch.Tensor) -> torch.Tensor:
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) > 0.01
    return x * kept.to(x)


def detached_keys(original: Any, q: Any, k: Any, v: Any, causal: bool) -> Any:
    return original(q, k.detach() + (k - k.detach()) * 0.99, v, causal)


def by_columns(t: trainer.Trainer) -> None:
    """Meant as an honest variation, and a true fault: the fused kernel (torch 2.6 and 2.13) takes weight and gradient as they lie."""
    for weight in t.model.parameters():
        if weight.ndim == 2:
            weight.data = weight.data.t().contiguous().t()


STALE = "model.layers.1.post_attention_layernorm"
O_PROJ, UP = "model.layers.1.self_attn.o_proj", "model.layers.1.mlp.up_proj"
V_PROJ = "model.layers.0.self_attn.v_proj"
FIRST = "model.layers.0.self_attn"
ATTEND = (model, "attend")

FAULTS = [
    Fault("another initialisation", "weights", "",
          around(launch, "initialise", lambda original, m, seed: original(m, seed + 1))),
    Fault("data shifted by one", "data", "", around(Batches, "batch", shifted)),
    Fault("mask off by one", "forward", FIRST, around(*ATTEND, looks_ahead)),
    Fault("rotary angles of another base", "forward", FIRST,
          around(model, "rotation_tables", lambda original, n, w, base: original(n, w, base * 1.001))),
    Fault("a norm's epsilon 1e-6 -> 1e-5", "forward", "model.layers.1.input_layernorm", with_built(norm_epsilon)),
    Fault("heads swapped", "forward", "model.layers.1.self_attn.q_norm",
          in_layer("self_attn.q_norm", 1, lambda x: x.flip(-2))),
    Fault("attention output x 1.00001", "forward", "model.layers.1.self_attn",
          in_layer("self_attn", 1, lambda x: x * 1.00001)),
    Fault("attention scale x 1.0001", "forward", FIRST,
          around(*ATTEND, lambda original, q, k, v, causal: original(q * 1.0001, k, v, causal))),
    Fault("another activation", "forward", "model.layers.0.mlp",
          around(derivatives, "swiglu", lambda original, gate, up: F.gelu(gate) * up)),
    Fault("a product in bf16", "forward", FIRST,
          around(model, "linear", lambda original, x, weight: original(low_precision(x), weight))),
    Fault("dropout left on", "forward", "model.layers.0.mlp", in_layer("mlp", 0, noisy_dropout)),
    Fault("a stale weight", "stale", STALE, with_built(stale), late=True),
    Fault("label smoothing of 1e-4", "loss", "", around(trainer, "cross_entropy_sum", smoothed)),
    Fault("loss x 1.001", "loss", "", around(trainer, "cross_entropy_sum", lambda original, *a: original(*a) * 1.001)),
    Fault("one gradient x 1.00001", "backward", UP, gradient(f"{UP}.weight", lambda g: g * 1.00001)),
    Fault("one gradient's sign", "backward", V_PROJ, gradient(f"{V_PROJ}.weight", lambda g: -g)),
    Fault("one gradient transposed in part", "backward", O_PROJ, gradient(f"{O_PROJ}.weight", lambda g: g.T)),
    Fault("keys' gradient x 0.99", "backward", f"{LAST}.self_attn", around(*ATTEND, detached_keys)),
    Fault("accumulated twice", "accumulation", "", around(trainer.Trainer, "accumulate", accumulated_twice)),
    Fault("gradients never cleared", "accumulation", "",
          around(optim.Optimizer, "zero_gradients", lambda original, self: None), late=True),
    Fault("no clipping", "clip", "", with_built(lambda t: setattr(t.optimizer, "clip", 0.0))),
    Fault("clip at 1.00001", "clip", "", with_built(lambda t: setattr(t.optimizer, "clip", 1.00001))),
    Fault("beta2 0.95 -> 0.951", "moments", "", adamw(betas=lambda b: (b[0], 0.951))),
    Fault("beta1 0.9 -> 0.901", "moments", "", adamw(betas=lambda b: (0.901, b[1]))),
    Fault("moments forgotten at every step", "moments", "", around(optim.Optimizer, "step", forgetful), late=True),
    Fault("momentum 0.95 -> 0.951", "moments", "",
          with_built(lambda t: setattr(t.optimizer._muon, "momentum", 0.951)), "muon"),
    Fault("epsilon 1e-8 -> 2e-8", "update", "", adamw(epsilon=lambda e: 2 * e)),
    Fault("no bias correction", "update", "", around(optim.Optimizer, "step", without_bias_correction)),
    Fault("decay 0.1 -> 0.101", "update", "", adamw(weight_decay=lambda d: d * 1.01)),
    Fault("decay on norms", "update", "", with_built(decay_on_norms)),
    Fault("an update that writes nothing", "update", O_PROJ, around(optim.Optimizer, "step", dropped_update)),
    Fault("four iterations instead of five", "update", "",
          around(optim, "orthogonalise", lambda original, stack, dtype: original(stack, dtype, 4)), "muon"),
    Fault("rate x 1.0001", "schedule", "",
          around(optim.Optimizer, "step", lambda original, self, rate: original(self, rate * 1.0001))),
    Fault("schedule off by one", "schedule", "",
          around(optim.Schedule, "at", lambda original, self, step: original(self, step + 1))),
    Fault("weights laid out by columns, under torch's fused AdamW", "moments", "", with_built(by_columns), late=False),
]  # fmt: skip
