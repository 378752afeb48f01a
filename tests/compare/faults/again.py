"""Faults written after the rule for the learning rate was changed, which the frozen ones had shown to be too coarse."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambidex import derivatives, model, optim, trainer
from ambidex.text.batches import Batches
from faults.frozen import (
    after_step,
    batch,
    gradients,
    projection,
    scaled_backward,
    update_of,
    weights,
)
from faults.planting import LAST, Fault, adamw, around, backward, gradient, in_layer, with_built

L0, L1 = "model.layers.0", "model.layers.1"


def first_half_of_rate(original: Any, self: Any, rate: float) -> None:
    """Only AdamW's weights, or with AdamW alone only the vectors, get another rate."""
    step = self._adamw._step_together
    self._adamw._step_together = lambda names, r, decay: step(
        names, r * (1.0003 if "embed" not in names[0] else 1.0), decay
    )
    try:
        original(self, rate)
    finally:
        del self._adamw._step_together


def late_by_one(original: Any, self: Any, rate: float) -> None:
    """The rate of the step before goes to the optimizer."""
    before = getattr(self, "kept", rate)
    self.kept = rate
    original(self, before)


def first_moment_for_second(self: Any, rate: float) -> None:
    first, second = self._adamw.moments["model.norm.weight"]
    second.copy_(first.square())


def sorted_rows(inputs: Any, targets: Any) -> Any:
    order = np.argsort(inputs[:, 0], kind="stable")[::-1]
    return inputs[order].copy(), targets[order].copy()


def softmax_wide(original: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    mixed = original(q, k, v, causal)
    return torch.cat([mixed[:, :, :-1], mixed[:, :, -1:] * 1.001], 2)


def without_last(gradient_: Tensor) -> Tensor:
    kept = gradient_.clone()
    kept[:, -1] *= 0.99
    return kept


AGAIN = [
    Fault("rows sorted", "data", "", batch(sorted_rows)),
    Fault("every tenth token is the one before", "data", "",
          around(Batches, "batch", lambda o, self, s: (np.where(np.arange(self.context) % 10 == 9, np.roll(o(self, s)[0], 1, 1), o(self, s)[0]), o(self, s)[1]))),
    Fault("a key norm begins at 1.001", "weights", f"{L1}.self_attn.k_norm",
          weights(lambda n, w: w * 1.001 if n == f"{L1}.self_attn.k_norm.weight" else w)),
    Fault("queries rounded to bf16", "forward", f"{L1}.self_attn.q_proj",
          projection(f"{L1}.self_attn.q_proj", lambda y: y.bfloat16().to(y.dtype))),
    Fault("up x 1.00003", "forward", f"{L0}.mlp.up_proj", projection(f"{L0}.mlp.up_proj", lambda y: y * 1.00003)),
    Fault("the last token's attention x 1.001", "forward", f"{L0}.self_attn", around(model, "attend", softmax_wide)),
    Fault("SwiGLU's gate twice as steep by 1e-4", "forward", f"{L0}.mlp",
          around(derivatives, "swiglu", lambda o, gate, up: o(gate * 1.0001, up))),
    Fault("a norm's output in bf16", "forward", f"{L0}.post_attention_layernorm",
          in_layer("post_attention_layernorm", 0, lambda x: x.bfloat16().float())),
    Fault("a logit's bias", "loss", "",
          around(trainer, "cross_entropy_sum", lambda o, m, h, t: o(m, h + 1e-3, t))),
    Fault("loss over all tokens but one sequence twice", "loss", "",
          around(trainer, "cross_entropy_sum", lambda o, m, h, t: o(m, h, t) + o(m, h[:1], t[:1]) * 0.01)),
    Fault("gradient of values x 0.9999", "backward", f"{LAST}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(q, k, scaled_backward(0.9999)(v), causal))),
    Fault("one column of a gradient x 0.99", "backward", f"{L1}.mlp.down_proj", gradient(f"{L1}.mlp.down_proj.weight", without_last)),
    Fault("up's derivative takes the gate's sign", "backward", f"{LAST}.mlp",
          backward(derivatives._SwiGlu, lambda o, ctx, g: (o(ctx, g)[0], -o(ctx, g)[1]))),
    Fault("last norm's gradient x 1.00003", "backward", "model.norm", gradient("model.norm.weight", lambda g: g * 1.00003)),
    Fault("all gradients x 1.00003", "accumulation", "", gradients(lambda n, g: g * 1.00003)),
    Fault("the whole batch counted three times", "accumulation", "",
          around(trainer.Trainer, "accumulate", lambda o, self, i, t: o(self, np.tile(i, (3, 1)), np.tile(t, (3, 1))))),
    Fault("clip at 0.99999", "clip", "", with_built(lambda t: setattr(t.optimizer, "clip", 0.99999))),
    Fault("a second moment that is the first's square", "moments", "model.norm", after_step(first_moment_for_second)),
    Fault("beta1 0.9 -> 0.89999", "moments", "", adamw(betas=lambda b: (b[0] - 1e-5, b[1]))),
    Fault("rate of the vectors x 1.0003", "update", "", around(optim.Optimizer, "step", first_half_of_rate)),
    Fault("Muon's direction x 1.0005", "update", "", around(optim, "orthogonalise", lambda o, *a: o(*a) * 1.0005), "muon"),
    Fault("half an update of one weight", "update", f"{L1}.self_attn.v_proj",
          update_of(f"{L1}.self_attn.v_proj.weight", lambda b, a: (a + b) / 2)),
    Fault("decay 0.1 -> 0.1003", "update", "", adamw(weight_decay=lambda d: d * 1.003)),
    Fault("rate of the step before", "schedule", "", around(optim.Optimizer, "step", late_by_one), late=True),
    Fault("rate x 1.00005", "schedule", "", around(optim.Optimizer, "step", lambda o, self, rate: o(self, rate * 1.00005))),
    Fault("rate x 2", "schedule", "", around(optim.Schedule, "at", lambda o, self, step: 2 * o(self, step))),
]  # fmt: skip
