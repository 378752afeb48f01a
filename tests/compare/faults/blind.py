"""Faults written after the judge's rules were frozen: its figures on these are given apart, since nothing was tuned to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ambidex import derivatives, launch, model, optim, trainer
from ambidex.text.batches import Batches
from faults.planting import Fault, around, gradient, with_built


def normed_after_turning(t: trainer.Trainer) -> None:
    """QK-norm behind the rotation: the same while its weights are all 1, so silent at step 0."""
    attention = t.model.get_submodule("model.layers.0.self_attn")
    norm = attention.q_norm
    norm.forward = lambda x: (
        F.rms_norm(x.float(), norm.weight.shape, None, norm.epsilon) * norm.weight.roll(1)
    )


def last_micro_batch_lost(original: Any, self: Any, inputs: Any, targets: Any) -> float:
    return float(original(self, inputs[:-1], targets[:-1]))


def clipped_one_by_one(original: Any, self: Any, *a: Any) -> float:
    norm = original(self, *a)
    for parameter in self.named.values():
        if parameter.grad is not None:
            parameter.grad.mul_(min(1.0, 0.5 / max(1e-30, float(parameter.grad.norm()))))
    return float(norm)


def stepped_twice(original: Any, self: Any, rate: float) -> None:
    original(self, rate)
    self.steps_taken -= 1
    original(self, rate)


def moments_reset_at_four(original: Any, self: Any, rate: float) -> None:
    if self.steps_taken == 4:
        for first, second in self._adamw.moments.values():
            first.zero_()
            second.zero_()
    original(self, rate)


def second_moment_of_one(original: Any, self: Any, rate: float) -> None:
    original(self, rate)
    self._adamw.moments["model.norm.weight"][1].mul_(1.01)


def wrong_way(original: Any, self: Any, rate: float) -> None:
    weight = self.named["model.layers.0.mlp.down_proj.weight"]
    before = weight.detach().clone()
    original(self, rate)
    with torch.no_grad():
        weight.copy_(before + 0.999 * (weight - before))


def half_gradients(original: Any, self: Any, inputs: Any, targets: Any) -> float:
    loss = original(self, inputs, targets)
    for parameter in self.model.parameters():
        if parameter.grad is not None:
            parameter.grad.copy_(parameter.grad.bfloat16().float())
    return float(loss)


def shifted_targets(original: Any, self: Any, step: int) -> Any:
    inputs, targets = original(self, step)
    return inputs, np.roll(targets, -1, axis=1)


def other_order(original: Any, self: Any, step: int) -> Any:
    return original(self, step + 1)


def ignored_token(original: Any, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    targets = targets.clone()
    targets[0, -1] = -100
    return original(head, hidden, targets)


def scaled_residual(t: trainer.Trainer) -> None:
    block = t.model.get_submodule("model.layers.1")
    forward = block.forward
    block.forward = lambda x, *a: forward(x, *a) + 1e-4 * x


LAYER0, LAYER1 = "model.layers.0", "model.layers.1"

BLIND = [
    Fault("norm's weights turned by one", "forward", f"{LAYER0}.self_attn.q_norm", with_built(normed_after_turning), late=True),
    Fault("a residual added a little more", "forward", LAYER1, with_built(scaled_residual)),
    Fault("key heads repeated in another order", "forward", f"{LAYER0}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(q.flip(1), k, v, causal).flip(1).roll(1, 1))),
    Fault("values and keys of one head", "forward", f"{LAYER0}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(q, k, k, causal))),
    Fault("gate and up exchanged", "forward", f"{LAYER0}.mlp",
          around(derivatives, "swiglu", lambda o, gate, up: o(up, gate))),
    Fault("embedding x 1.0001", "forward", "model.embed_tokens",
          with_built(lambda t: t.model.model.embed_tokens.register_forward_hook(lambda m, a, out: out * 1.0001, prepend=True))),
    Fault("the last norm left out", "forward", "model.norm",
          with_built(lambda t: setattr(t.model.model.norm, "forward", lambda x: x * t.model.model.norm.weight))),
    Fault("logits x 1.0001", "loss", "",
          around(trainer, "cross_entropy_sum", lambda o, m, hidden, targets: o(m, hidden * 1.0001, targets))),
    Fault("sines of the other sign", "forward", f"{LAYER0}.self_attn",
          around(derivatives, "rotate", lambda o, x, cosine, sine, dtype: o(x, cosine, -sine, dtype))),
    Fault("a token left out of the loss", "loss", "", around(trainer, "cross_entropy_sum", ignored_token)),
    Fault("a thousandth of the values' gradient lost", "backward", f"{LAYER0}.self_attn.v_proj",
          gradient(f"{LAYER0}.self_attn.v_proj.weight", lambda g: g * 0.999)),
    Fault("a norm's gradient x 1.001", "backward", f"{LAYER0}.post_attention_layernorm",
          gradient(f"{LAYER0}.post_attention_layernorm.weight", lambda g: g * 1.001)),
    Fault("one element's sign in a gradient", "backward", f"{LAYER1}.mlp.down_proj",
          gradient(f"{LAYER1}.mlp.down_proj.weight", lambda g: torch.where(g == g.abs().max(), -g, g))),
    Fault("a row of the batch lost", "accumulation", "", around(trainer.Trainer, "accumulate", last_micro_batch_lost)),
    Fault("gradients kept in bf16", "accumulation", "", around(trainer.Trainer, "accumulate", half_gradients)),
    Fault("clipped tensor by tensor", "clip", "", around(optim.Optimizer, "clip_gradients", clipped_one_by_one)),
    Fault("a norm of fp32 sums, low by 1e-5", "clip", "",
          around(optim, "gradient_norm", lambda o, gradients: o(gradients) * (1 - 1e-5))),
    Fault("one second moment x 1.01", "moments", "model.norm", around(optim.Optimizer, "step", second_moment_of_one)),
    Fault("moments reset at step 4", "moments", "", around(optim.Optimizer, "step", moments_reset_at_four), late=True),
    Fault("an update shortened by a thousandth", "update", f"{LAYER0}.mlp.down_proj", around(optim.Optimizer, "step", wrong_way)),
    Fault("decay on the embedding only, doubled", "update", "model.embed_tokens",
          with_built(lambda t: setattr(t.optimizer._adamw, "weight_decay", 0.2)), "muon"),
    Fault("Muon's size x 1.001", "update", "", around(optim, "orthogonalise", lambda o, *a: o(*a) * 1.001), "muon"),
    Fault("a warm-up one step longer", "schedule", "",
          around(optim.Schedule, "at", lambda o, self, step: o(self, step) * (0.9 if step < 3 else 1.0))),
    Fault("targets two tokens ahead", "data", "", around(Batches, "batch", shifted_targets)),
    Fault("the batches of the next step", "data", "", around(Batches, "batch", other_order)),
    Fault("one weight of another draw", "weights", f"{LAYER0}.mlp.up_proj",
          around(launch, "initialise", lambda o, m, seed: (o(m, seed), m.get_submodule(f"{LAYER0}.mlp.up_proj").weight.data.neg_())[0])),
]  # fmt: skip
