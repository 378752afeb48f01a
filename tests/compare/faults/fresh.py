"""Faults written after the judge's rules were frozen a second time, and run once: what is named wrong here stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ambidex import derivatives, model, optim, products, trainer
from ambidex.text.batches import Batches
from faults.frozen import (
    after_step,
    batch,
    both,
    gradients,
    projection,
    scaled_backward,
    stale_linear,
    update_of,
    weights,
    with_stale,
)
from faults.planting import LAST, Fault, Patch, adamw, around, backward, gradient, with_built

L0, L1 = "model.layers.0", "model.layers.1"
EMBEDDING = "model.embed_tokens.weight"


def first_in_last(inputs: Any, targets: Any) -> tuple[Any, Any]:
    inputs = inputs.copy()
    inputs[:, -1] = inputs[:, 0]
    return inputs, targets


def half_of_before(original: Any, self: Any, step: int) -> Any:
    (inputs, targets), (old_inputs, old_targets) = original(self, step), original(self, max(0, step - 1))
    inputs, targets = inputs.copy(), targets.copy()
    inputs[:4], targets[:4] = old_inputs[:4], old_targets[:4]
    return inputs, targets


def negated_head(name: str, weight: Tensor) -> Tensor:
    if name != f"{L0}.self_attn.q_proj.weight":
        return weight
    return torch.cat([-weight[:32], weight[32:]])


def without_one(name: str, weight: Tensor) -> Tensor:
    return torch.cat([weight[:-1], 0 * weight[-1:]]) if name == f"{L0}.input_layernorm.weight" else weight


def looking_ahead_in(layer: str) -> Callable[[Patch], None]:
    """One layer's attention sees one token ahead."""
    inside: list[str] = []

    def built(t: trainer.Trainer) -> None:
        attention = t.model.get_submodule(f"{layer}.self_attn")
        forward = attention.forward

        def marked(*a: Any) -> Tensor:
            inside.append(layer)
            try:
                return forward(*a)  # type: ignore[no-any-return]
            finally:
                inside.pop()

        attention.forward = marked

    def attend(original: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        if not inside:
            return original(q, k, v, causal)  # type: ignore[no-any-return]
        mask = torch.ones(q.shape[-2], q.shape[-2], dtype=torch.bool).tril(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    return both(with_built(built), around(model, "attend", attend))


def one_frequency_off(original: Any, length: int, width: int, base: float) -> tuple[Tensor, Tensor]:
    tables = original(length, width, base)
    other = original(length, width, base * 1.01)
    for table, wrong in zip(tables, other):
        table[:, 3], table[:, 3 + width // 2] = wrong[:, 3], wrong[:, 3 + width // 2]
    return tables  # type: ignore[no-any-return]


def one_token_louder(t: trainer.Trainer) -> None:
    t.model.model.embed_tokens.register_forward_hook(
        lambda m, a, y: y * (1 + 1e-3 * (a[0] == 32).unsqueeze(-1).to(y)), prepend=True
    )


def weighed_twice(t: trainer.Trainer) -> None:
    norm = t.model.get_submodule(f"{L0}.self_attn.q_norm")
    norm.forward = lambda x: F.rms_norm(x.float(), norm.weight.shape, norm.weight * norm.weight, norm.epsilon)


def another_norms_weight(t: trainer.Trainer) -> None:
    norm, other = (
        t.model.get_submodule(f"{L1}.{name}") for name in ("post_attention_layernorm", "input_layernorm")
    )
    norm.forward = lambda x: F.rms_norm(
        x.float(), norm.weight.shape, norm.weight + (other.weight - norm.weight).detach(), norm.epsilon
    )


def steeper(t: trainer.Trainer) -> None:
    mlp = t.model.get_submodule(f"{L1}.mlp")

    def forward(x: Tensor) -> Tensor:
        gate, up = model.linears(x, mlp.gate_proj.weight, mlp.up_proj.weight)
        return model.linear(F.silu(gate * 1.0005) * up, mlp.down_proj.weight)

    mlp.forward = forward


def stale_embedding(t: trainer.Trainer) -> None:
    """Looked up in a copy that is made anew every other step."""
    table = t.model.model.embed_tokens
    kept: dict[str, Any] = {"step": -9, "weight": None}

    def forward(tokens: Tensor) -> Tensor:
        if not 0 <= t.step - kept["step"] < 2:
            kept["step"], kept["weight"] = t.step, table.weight.detach().clone()
        return F.embedding(tokens, table.weight + (kept["weight"] - table.weight.detach()))

    table.forward = forward


def by_logits(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Patch], None]:
    """The loss of changed logits: ``change(logits, targets)`` gives one number a token."""

    def loss(original: Any, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
        logits = head.logits(hidden).flatten(0, 1).float()
        return change(logits, targets.flatten()).sum()

    return around(trainer, "cross_entropy_sum", loss)


def surprise(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")


def by_place(logits: Tensor, targets: Tensor) -> Tensor:
    return surprise(logits, targets) * torch.linspace(0.999, 1.001, len(targets))


def with_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    chances = logits.softmax(-1)
    return surprise(logits, targets) + 1e-4 * (chances * chances.clamp_min(1e-30).log()).sum(-1)


def last_row_halved(logits: Tensor, targets: Tensor) -> Tensor:
    found = surprise(logits, targets)
    return torch.cat([found[:-32], 0.5 * found[-32:]])


def half_a_row(g: Tensor) -> Tensor:
    return torch.cat([0.5 * g[:1], g[1:]])


def without_rare_rows(g: Tensor) -> Tensor:
    size = g.norm(dim=1, keepdim=True)
    return g * (size > 0.1 * size.max())


def attention_bypass(t: trainer.Trainer) -> None:
    block = t.model.get_submodule(L1)

    def forward(x: Tensor, *a: Any) -> Tensor:
        x = scaled_backward(0.9995)(x) + block.self_attn(block.input_layernorm(x), *a)
        return x + block.mlp(block.post_attention_layernorm(x))  # type: ignore[no-any-return]

    block.forward = forward


def weights_part_smaller(original: Any, ctx: Any, g: Tensor) -> Any:
    by_x, by_weight, rest = original(ctx, g)
    return by_x, by_weight * 0.9999, rest


def trailing(original: Any, self: Any, inputs: Any, targets: Any) -> float:
    """A hundredth of the gradients of the step before is added."""
    found = float(original(self, inputs, targets))
    before = getattr(self, "trail", (self.step, {}))
    now = {n: w.grad.clone() for n, w in self.model.named_parameters() if w.grad is not None}
    if before[0] == self.step - 1:
        for name, weight in self.model.named_parameters():
            if name in before[1]:
                weight.grad.add_(before[1][name], alpha=0.01)
    self.trail = self.step, now
    return found


def matrices_only(original: Any, found: Any) -> Tensor:
    return original([g for g in found if g.ndim > 1])  # type: ignore[no-any-return]


def clipped_squared(original: Any, self: Any, *a: Any) -> float:
    norm = float(original(self, *a))
    if norm > self.clip > 0:
        for weight in self.named.values():
            if weight.grad is not None:
                weight.grad.mul_(self.clip / norm)
    return norm


def largest_kept(original: Any, self: Any, rate: float) -> None:
    """AMSGrad, in the moment itself: silent while second moments grow."""
    before = {name: pair[1].clone() for name, pair in self._adamw.moments.items()}
    original(self, rate)
    for name, second in before.items():
        self._adamw.moments[name][1].copy_(torch.maximum(self._adamw.moments[name][1], second))


def a_neighbours(self: Any, rate: float) -> None:
    names = [f"{L0}.post_attention_layernorm.weight", f"{L1}.post_attention_layernorm.weight"]
    mine, other = (self._adamw.moments[name][1] for name in names)
    mine.copy_(other)


def one_row_back(before: Tensor, after: Tensor) -> Tensor:
    found = after.clone()
    found[5] = 2 * before[5] - after[5]
    return found


def without_decay(original: Any, self: Any, rate: float) -> None:
    weight = self.named[EMBEDDING]
    before = weight.detach().clone()
    original(self, rate)
    with torch.no_grad():
        weight.add_(before, alpha=rate * 0.1)


def vectors_again(original: Any, self: Any, rate: float) -> None:
    """Vectors get half as much again."""
    before = {name: weight.detach().clone() for name, weight in self.named.items() if weight.ndim < 2}
    original(self, rate)
    with torch.no_grad():
        for name, old in before.items():
            self.named[name].add_(self.named[name] - old, alpha=0.5)


def by_the_shorter_side(original: Any, stack: Tensor, *a: Any) -> Tensor:
    return original(stack, *a) * (min(stack.shape[1:]) / max(stack.shape[1:])) ** 0.5  # type: ignore[no-any-return]


def rate_of_the_next(t: trainer.Trainer) -> None:
    step = t.optimizer.step
    t.optimizer.step = lambda rate: step(t.schedule.at(t.step + 1))  # type: ignore[method-assign]


FRESH = [
    Fault("the first token at the end of every row", "data", "", batch(first_in_last)),
    Fault("targets that are the inputs", "data", "", batch(lambda i, t: (i, i.copy()))),
    Fault("a batch from far ahead", "data", "", around(Batches, "batch", lambda o, self, step: o(self, step + 1000))),
    Fault("half a batch of the step before", "data", "", around(Batches, "batch", half_of_before), late=True),
    Fault("one head's queries begin negated", "weights", f"{L0}.self_attn.q_proj", weights(negated_head)),
    Fault("a gate begins x 1.00001", "weights", f"{L1}.mlp.gate_proj",
          weights(lambda n, w: w * 1.00001 if n == f"{L1}.mlp.gate_proj.weight" else w)),
    Fault("a norm begins with one 0", "weights", f"{L0}.input_layernorm", weights(without_one)),
    Fault("SwiGLU's output cut at 0.05", "forward", f"{L0}.mlp",
          around(derivatives, "swiglu", lambda o, gate, up: o(gate, up).clamp(-0.05, 0.05))),
    Fault("the second layer looks one token ahead", "forward", f"{L1}.self_attn", looking_ahead_in(L1)),
    Fault("one rotary frequency off", "forward", f"{L0}.self_attn", around(model, "rotation_tables", one_frequency_off)),
    Fault("first norm's epsilon 1e-6 -> 2e-6", "forward", f"{L0}.input_layernorm",
          with_built(lambda t: setattr(t.model.get_submodule(f"{L0}.input_layernorm"), "epsilon", 2e-6))),
    Fault("o_proj's product in fp16", "forward", f"{L1}.self_attn.o_proj",
          projection(f"{L1}.self_attn.o_proj", lambda y: y.half().to(y.dtype))),
    Fault("one token's embedding x 1.001", "forward", "model.embed_tokens", with_built(one_token_louder)),
    Fault("a block's output in bf16", "forward", L0,
          with_built(lambda t: t.model.get_submodule(L0).register_forward_hook(lambda m, a, y: y.bfloat16().to(y.dtype), prepend=True))),
    Fault("query norm's weight twice", "forward", f"{L0}.self_attn.q_norm", with_built(weighed_twice), late=True),
    Fault("a norm with another's weight", "forward", f"{L1}.post_attention_layernorm", with_built(another_norms_weight), late=True),
    Fault("SiLU a little steeper in one layer", "forward", f"{L1}.mlp", with_built(steeper)),
    Fault("values' last element doubled", "forward", f"{L0}.self_attn.v_proj",
          projection(f"{L0}.self_attn.v_proj", lambda y: torch.cat([y[..., :-1], 2 * y[..., -1:]], -1))),
    Fault("weight of the step before, values", "stale", f"{L1}.self_attn.v_proj",
          both(with_built(stale_linear(f"{L1}.self_attn.v_proj")), around(products, "_multiplied", with_stale)), late=True),
    Fault("an embedding copied every other step", "stale", "model.embed_tokens", with_built(stale_embedding), late=True),
    Fault("last hidden state in bf16", "loss", "",
          around(trainer, "cross_entropy_sum", lambda o, m, h, t: o(m, h + (h.bfloat16().to(h.dtype) - h).detach(), t))),
    Fault("logits capped at 30", "loss", "", by_logits(lambda logits, t: surprise(30 * torch.tanh(logits / 30), t))),
    Fault("tokens weighed by their place", "loss", "", by_logits(by_place)),
    Fault("a bonus for entropy", "loss", "", by_logits(with_entropy)),
    Fault("the last row's loss halved", "loss", "", by_logits(last_row_halved)),
    Fault("half of one row of a gradient", "backward", f"{L0}.self_attn.k_proj", gradient(f"{L0}.self_attn.k_proj.weight", half_a_row)),
    Fault("a query norm's gradient x 1.0001", "backward", f"{L1}.self_attn.q_norm",
          gradient(f"{L1}.self_attn.q_norm.weight", lambda g: g * 1.0001)),
    Fault("a gradient in fp16", "backward", f"{L0}.mlp.down_proj",
          gradient(f"{L0}.mlp.down_proj.weight", lambda g: g.half().float())),
    Fault("gradient behind attention x 0.99", "backward", f"{LAST}.self_attn",
          around(model, "attend", lambda o, *a: scaled_backward(0.99)(o(*a)))),
    Fault("gradient past attention x 0.9995", "backward", L1, with_built(attention_bypass)),
    Fault("rare tokens learn nothing", "backward", "model.embed_tokens", gradient(EMBEDDING, without_rare_rows)),
    Fault("norms' own gradients x 0.9999", "backward", "model.norm", backward(derivatives._RmsNorm, weights_part_smaller)),
    Fault("a gate's gradient, one column's sign", "backward", f"{L1}.mlp.gate_proj",
          gradient(f"{L1}.mlp.gate_proj.weight", lambda g: torch.cat([-g[:, :1], g[:, 1:]], 1))),
    Fault("a hundredth of the gradients before", "accumulation", "", around(trainer.Trainer, "accumulate", trailing), late=True),
    Fault("divided by nine sequences", "accumulation", "", gradients(lambda n, g: g * (8 / 9))),
    Fault("gradients averaged over two", "accumulation", "", gradients(lambda n, g: g * 0.5)),
    Fault("clipped by the norm of matrices", "clip", "", around(optim, "gradient_norm", matrices_only)),
    Fault("clipped by the factor squared", "clip", "", around(optim.Optimizer, "clip_gradients", clipped_squared)),
    Fault("clip at 0.5", "clip", "", with_built(lambda t: setattr(t.optimizer, "clip", 0.5))),
    Fault("beta2 0.95 -> 0.9501", "moments", "", adamw(betas=lambda b: (b[0], b[1] + 1e-4))),
    Fault("embedding's first moment x 1.0001", "moments", "model.embed_tokens",
          after_step(lambda self, rate: self._adamw.moments[EMBEDDING][0].mul_(1.0001))),
    Fault("second moments that never fall", "moments", "", around(optim.Optimizer, "step", largest_kept), late=True),
    Fault("a second moment of another layer", "moments", f"{L0}.post_attention_layernorm", after_step(a_neighbours)),
    Fault("momentum 0.95 -> 0.9505", "moments", "",
          with_built(lambda t: setattr(t.optimizer._muon, "momentum", 0.9505)), "muon"),
    Fault("one row of an update turned round", "update", f"{L0}.self_attn.o_proj",
          update_of(f"{L0}.self_attn.o_proj.weight", one_row_back)),
    Fault("embedding not decayed", "update", "model.embed_tokens", around(optim.Optimizer, "step", without_decay)),
    Fault("vectors move half as much again", "update", "", around(optim.Optimizer, "step", vectors_again)),
    Fault("a key norm that stands still", "update", f"{L1}.self_attn.k_norm",
          update_of(f"{L1}.self_attn.k_norm.weight", lambda before, after: before)),
    Fault("epsilon 1e-8 -> 1.5e-8", "update", "", adamw(epsilon=lambda e: 1.5 * e)),
    Fault("Muon's size by the shorter side", "update", "", around(optim, "orthogonalise", by_the_shorter_side), "muon"),
    Fault("Muon in bf16", "update", "", around(optim, "orthogonalise", lambda o, stack, *a: o(stack, torch.bfloat16)), "muon"),
    Fault("rate x 0.9998", "schedule", "", around(optim.Optimizer, "step", lambda o, self, rate: o(self, rate * 0.9998))),
    Fault("rate of two digits", "schedule", "", around(optim.Optimizer, "step", lambda o, self, rate: o(self, float(f"{rate:.1e}")))),
    Fault("rate of the step after", "schedule", "", with_built(rate_of_the_next)),
]  # fmt: skip
