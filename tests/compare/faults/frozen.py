"""Faults written after the judge's rules were frozen: its figures on these are given apart, since nothing was tuned to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ambidex import derivatives, launch, model, optim, plan, products, trainer
from ambidex.config import Settings
from ambidex.text.batches import Batches
from faults.planting import LAST, Fault, Patch, adamw, around, backward, gradient, in_layer, with_built

L0, L1 = "model.layers.0", "model.layers.1"
Change = Callable[[Tensor], Tensor]


def projection(name: str, change: Change) -> Callable[[Patch], None]:
    """Change what one projection's product gives, inside the product itself."""

    def plant(patch: Patch) -> None:
        with_built(lambda t: setattr(t.model.get_submodule(name).weight, "guilty", True))(patch)
        original = products._multiplied

        def multiplied(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
            found = original(x, *weights)
            return tuple(change(y) if hasattr(w, "guilty") else y for w, y in zip(weights, found))

        patch.setattr(products, "_multiplied", multiplied)

    return plant


def both(*plants: Callable[[Patch], None]) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        for one in plants:
            one(patch)

    return plant


def scaled_backward(factor: float) -> Callable[[Tensor], Tensor]:
    """The same forward; backward, so many times the gradient."""

    def change(x: Tensor) -> Tensor:
        return x.detach() * (1 - factor) + x * factor if not x.requires_grad else _Scaled.apply(x, factor)  # type: ignore[no-any-return,no-untyped-call]

    return change


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *found: Any) -> Any:
        return found[0] * ctx.factor, None


def batch(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Patch], None]:
    return around(Batches, "batch", lambda o, self, step: change(*o(self, step)))


def one_token(inputs: Any, targets: Any) -> tuple[Any, Any]:
    inputs = inputs.copy()
    inputs[3, 7] = (inputs[3, 7] + 1) % 100
    return inputs, targets


def copying(inputs: Any, targets: Any) -> tuple[Any, Any]:
    targets = targets.copy()
    targets[0] = inputs[0]
    return inputs, targets


def weights(change: Callable[[str, Tensor], Tensor]) -> Callable[[Patch], None]:
    def initialise(original: Any, built: nn.Module, seed: int) -> None:
        original(built, seed)
        with torch.no_grad():
            for name, weight in built.named_parameters():
                weight.copy_(change(name, weight).clone())

    return around(launch, "initialise", initialise)


def after_step(change: Callable[[Any, float], None]) -> Callable[[Patch], None]:
    @torch.no_grad()
    def step(original: Any, self: Any, rate: float) -> None:
        original(self, rate)
        change(self, rate)

    return around(optim.Optimizer, "step", step)


def before_step(change: Callable[[Any, float], None]) -> Callable[[Patch], None]:
    @torch.no_grad()
    def step(original: Any, self: Any, rate: float) -> None:
        change(self, rate)
        original(self, rate)

    return around(optim.Optimizer, "step", step)


def update_of(name: str, change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Patch], None]:
    """``change(before, after)`` is what one weight becomes."""

    @torch.no_grad()
    def step(original: Any, self: Any, rate: float) -> None:
        before = self.named[name].detach().clone()
        original(self, rate)
        self.named[name].copy_(change(before, self.named[name]))

    return around(optim.Optimizer, "step", step)


def gradients(change: Callable[[str, Tensor], Tensor]) -> Callable[[Patch], None]:
    """Of every parameter, once they are added up."""

    @torch.no_grad()
    def accumulate(original: Any, self: Any, inputs: Any, targets: Any) -> float:
        found = original(self, inputs, targets)
        for name, weight in self.model.named_parameters():
            if weight.grad is not None:
                weight.grad.copy_(change(name, weight.grad).clone())
        return float(found)

    def plant(patch: Patch) -> None:
        original = trainer.Trainer.accumulate
        patch.setattr(trainer.Trainer, "accumulate",
                      lambda self, i, t: _with_grad(accumulate, original, self, i, t))  # fmt: skip

    return plant


def _with_grad(accumulate: Any, original: Any, self: Any, inputs: Any, targets: Any) -> float:
    def enabled(*a: Any) -> Any:
        with torch.enable_grad():
            return original(*a)

    return float(accumulate(enabled, self, inputs, targets))


def window_one_short(original: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    length = q.shape[-2]
    mask = torch.ones(length, length, dtype=torch.bool).tril().triu(2 - length)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def stale_linear(name: str) -> Callable[[trainer.Trainer], None]:
    """A product that goes on with the weight of the step before, as a cache that nobody empties."""

    def change(t: trainer.Trainer) -> None:
        weight = t.model.get_submodule(name).weight
        weight.kept = {"step": -1, "now": None, "before": None}  # type: ignore[attr-defined]
        weight.of = t  # type: ignore[attr-defined]

    return change


def with_stale(original: Any, x: Tensor, *ws: Tensor) -> tuple[Tensor, ...]:
    found = original(x, *ws)
    return tuple(_late(x, w, y) if hasattr(w, "kept") else y for w, y in zip(ws, found))


def _late(x: Tensor, weight: Any, product: Tensor) -> Tensor:
    kept, step = weight.kept, weight.of.step
    if kept["step"] != step:
        kept["before"] = kept["now"] if kept["step"] == step - 1 else None
        kept["now"], kept["step"] = weight.detach().clone(), step
    if kept["before"] is None:
        return product
    return product + F.linear(x.float(), (kept["before"] - weight.detach()).float()).to(product.dtype)


def cached_tables(t: trainer.Trainer) -> None:
    """A norm whose weight is remembered for two steps."""
    norm = t.model.get_submodule("model.norm")
    kept: dict[str, Any] = {"step": -9, "weight": None}

    def forward(x: Tensor) -> Tensor:
        if not 0 <= t.step - kept["step"] < 2:
            kept["step"], kept["weight"] = t.step, norm.weight.detach().clone()
        late = kept["weight"] - norm.weight.detach()
        return F.rms_norm(x.float(), norm.weight.shape, norm.weight + late, norm.epsilon)

    norm.forward = forward


def untied(original: Any, settings: Settings, *a: Any) -> Any:
    return original(settings.model_copy(update={"tied": False}), *a)


def head_without_gradient(original: Any, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Tied in name only: what the head learns is lost."""
    weight = head.lm_head.weight
    weight.requires_grad_(False)
    try:
        logits = F.linear(hidden.float(), weight.detach()).flatten(0, 1).float()
    finally:
        weight.requires_grad_(True)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum")


def z_loss(original: Any, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    logits = head.logits(hidden).flatten(0, 1).float()
    return original(head, hidden, targets) + 1e-5 * torch.logsumexp(logits, -1).square().sum()  # type: ignore[no-any-return]


def padding_learnt(original: Any, head: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    return original(head, hidden, targets.roll(1, 0))  # type: ignore[no-any-return]


def halves_as_mean(original: Any, self: Any, inputs: Any, targets: Any) -> float:
    """Two micro-batches, each divided by its own tokens and not by the batch's."""
    half = len(inputs) // 2
    return (
        float(original(self, inputs[:half], targets[:half]) + original(self, inputs[half:], targets[half:]))
        / 2
    )


def first_half_only(original: Any, self: Any, inputs: Any, targets: Any) -> float:
    """Gradients of the second micro-batch in the place of the sum."""
    half = len(inputs) // 2
    loss_ = original(self, inputs, targets)
    kept = {name: w.grad.clone() for name, w in self.model.named_parameters() if w.grad is not None}
    del half
    for number, (name, weight) in enumerate(self.model.named_parameters()):
        weight.grad = kept[name] * (1 + 1e-3 * (number % 3 + 1))
    return float(loss_)


def clip_by_value(original: Any, self: Any, *a: Any) -> float:
    norm = original(self, *a)
    for parameter in self.named.values():
        if parameter.grad is not None:
            limit = 0.5 * float(parameter.grad.abs().max())
            parameter.grad.clamp_(-limit, limit)
    return float(norm)


def clip_without(name: str) -> Callable[..., float]:
    def clip(original: Any, self: Any, *a: Any) -> float:
        mine = self.named[name].grad.clone()
        norm = float(original(self, *a))
        self.named[name].grad.copy_(mine)
        return norm

    return clip


def clip_twice(original: Any, self: Any, *a: Any) -> float:
    norm = float(original(self, *a))
    self.clip, kept = self.clip * 0.999, self.clip
    original(self, *a)
    self.clip = kept
    return norm


def noncontiguous(t: trainer.Trainer) -> None:
    """An in-place update of a transposed weight goes into a copy: it happened, on another device, in 2025."""
    for named in (t.optimizer._adamw.named, t.optimizer._muon.named):
        name = f"{L0}.self_attn.q_proj.weight"
        if name in named:
            weight = named[name]
            named[name] = shadow = nn.Parameter(weight.detach().clone())
            weight.register_post_accumulate_grad_hook(
                lambda w, shadow=shadow: setattr(shadow, "grad", w.grad)
            )


def moments_in_bf16(self: Any, rate: float) -> None:
    for pair in self._adamw.moments.values():
        for moment in pair:
            moment.copy_(moment.bfloat16().float())


def moments_of_neighbours(self: Any, rate: float) -> None:
    names = [f"{L0}.input_layernorm.weight", f"{L1}.input_layernorm.weight"]
    a, b = (self._adamw.moments[name][0] for name in names)
    a.copy_(b)


def momentum_of_one(self: Any, rate: float) -> None:
    if f"{L1}.mlp.up_proj.weight" in self._muon.buffers:
        self._muon.buffers[f"{L1}.mlp.up_proj.weight"].mul_(1.001)


def reset_on_resume(original: Any, self: Any, moments: Any, *steps: int) -> None:
    original(self, {name: torch.zeros_like(m) for name, m in moments.items()}, *steps)


def steps_forgotten(original: Any, self: Any, moments: Any, *steps: int) -> None:
    original(self, moments, *steps)
    for count in self._adamw.steps.values():
        count.zero_()


def decay_of(shape: int, factor: float) -> Callable[[Any, float], None]:
    def change(self: Any, rate: float) -> None:
        for weight in self.named.values():
            if weight.ndim == shape:
                weight.mul_(1 - rate * factor)

    return change


def l2_not_decoupled(self: Any, rate: float) -> None:
    for weight in self._adamw.named.values():
        if weight.ndim >= 2 and weight.grad is not None:
            weight.grad.add_(weight, alpha=1e-3)


def rounded(before: Tensor, after: Tensor) -> Tensor:
    return after.bfloat16().float()


def as_it_was(before: Tensor, after: Tensor) -> Tensor:
    kept = after.clone()
    kept[-1] = before[-1]
    return kept


def rms_backward(factor: float) -> Callable[[Patch], None]:
    def change(original: Any, ctx: Any, gradient: Tensor) -> Any:
        by_x, *rest = original(ctx, gradient)
        return by_x * factor, *rest

    return backward(derivatives._RmsNorm, change)


def silu_as_sigmoid(original: Any, ctx: Any, gradient: Tensor) -> Any:
    by_gate, by_up = original(ctx, gradient)
    return by_gate * 1.0001, by_up


def turned_too_far(original: Any, ctx: Any, gradient: Tensor) -> Any:
    found, *rest = original(ctx, gradient)
    return found.roll(1, -1), *rest


def without_nesterov(original: Any, gradients: list[Tensor], momenta: list[Tensor], *a: Any) -> Tensor:
    original(gradients, momenta, *a)  # which moves the momenta
    return original(momenta, [momentum.clone() for momentum in momenta], *a)  # type: ignore[no-any-return]


FROZEN = [
    Fault("one token of a batch", "data", "", batch(one_token)),
    Fault("rows in another order", "data", "", batch(lambda i, t: (i[::-1].copy(), t[::-1].copy()))),
    Fault("one row learns to copy", "data", "", batch(copying)),
    Fault("the first batch again and again", "data", "", around(Batches, "batch", lambda o, self, step: o(self, 0)), late=True),
    Fault("tokens shifted inside the loop", "data", "",
          around(trainer.Trainer, "accumulate", lambda o, self, i, t: o(self, np.roll(i, 1, axis=1), t))),
    Fault("embedding x 1.0001 at the start", "weights", "model.embed_tokens",
          weights(lambda n, w: w * 1.0001 if "embed" in n else w)),
    Fault("last norm begins at 0.99", "weights", "model.norm", weights(lambda n, w: w * 0.99 if n == "model.norm.weight" else w)),
    Fault("one projection transposed at the start", "weights", f"{L1}.self_attn.o_proj",
          weights(lambda n, w: w.t() if n == f"{L1}.self_attn.o_proj.weight" else w)),
    Fault("untied embeddings", "weights", "lm_head", around(plan, "shape_of", untied)),
    Fault("values x 1.0001", "forward", f"{L1}.self_attn.v_proj", projection(f"{L1}.self_attn.v_proj", lambda y: y * 1.0001)),
    Fault("gate's product in bf16", "forward", f"{L0}.mlp.gate_proj",
          projection(f"{L0}.mlp.gate_proj", lambda y: y.bfloat16().to(y.dtype))),
    Fault("keys turned by one element", "forward", f"{L0}.self_attn.k_proj",
          projection(f"{L0}.self_attn.k_proj", lambda y: y.roll(1, -1))),
    Fault("a bias of 1e-4 behind o_proj", "forward", f"{L0}.self_attn.o_proj",
          projection(f"{L0}.self_attn.o_proj", lambda y: y + 1e-4)),
    Fault("one column of down_proj lost", "forward", f"{L1}.mlp.down_proj",
          projection(f"{L1}.mlp.down_proj", lambda y: torch.cat([y[..., :-1], y[..., -1:] * 0], -1))),
    Fault("a window one token short", "forward", f"{L0}.self_attn", around(model, "attend", window_one_short)),
    Fault("attention's scale of another width", "forward", f"{L0}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(q * (32 / 33) ** 0.5, k, v, causal))),
    Fault("values of the token before", "forward", f"{L0}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(q, k, v.roll(1, -2), causal))),
    Fault("rotary angles in fp16", "forward", f"{L0}.self_attn",
          around(model, "rotation_tables", lambda o, *a: tuple(t.half().float() for t in o(*a)))),
    Fault("rotary angles of queries one token late", "forward", f"{L0}.self_attn",
          around(model, "rotation_tables", lambda o, *a: (o(*a)[0], o(*a)[1].roll(1, 0)))),
    Fault("a norm's mean taken away", "forward", f"{L1}.post_attention_layernorm",
          in_layer("post_attention_layernorm", 1, lambda x: x - 1e-4 * x.mean(-1, keepdim=True))),
    Fault("query norm left out", "forward", f"{L1}.self_attn.q_norm",
          with_built(lambda t: setattr(t.model.get_submodule(f"{L1}.self_attn.q_norm"), "forward", lambda x: x.float()))),
    Fault("feed-forward x 0.9999", "forward", f"{L1}.mlp", in_layer("mlp", 1, lambda x: x * 0.9999)),
    Fault("one element of a block's output", "forward", L0,
          with_built(lambda t: t.model.get_submodule(L0).register_forward_hook(
              lambda m, a, y: y + 1e-2 * torch.nn.functional.one_hot(torch.tensor(3), y.shape[-1]).to(y), prepend=True))),
    Fault("attention of one head left out", "forward", f"{L0}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(q, k, v, causal) * torch.tensor([1.0, 0.0]).repeat(q.shape[1] // 2).view(1, -1, 1, 1).to(q))),
    Fault("embedding scaled by its width", "forward", "model.embed_tokens",
          with_built(lambda t: t.model.model.embed_tokens.register_forward_hook(lambda m, a, y: y * 8.0, prepend=True))),
    Fault("weight of the step before, one projection", "stale", f"{L0}.mlp.up_proj",
          both(with_built(stale_linear(f"{L0}.mlp.up_proj")), around(products, "_multiplied", with_stale)), late=True),
    Fault("weight of the step before, last norm", "stale", "model.norm", with_built(cached_tables), late=True),
    Fault("z-loss of 1e-5", "loss", "", around(trainer, "cross_entropy_sum", z_loss)),
    Fault("answers of the row before", "loss", "", around(trainer, "cross_entropy_sum", padding_learnt)),
    Fault("loss of the first token left out", "loss", "",
          around(trainer, "cross_entropy_sum", lambda o, m, h, t: o(m, h[:, 1:], t[:, 1:].contiguous()))),
    Fault("chances x 1.0001", "loss", "",
          around(derivatives, "cross_entropy", lambda o, *a: o(*a) * 1.0001)),
    Fault("head learns nothing", "loss", "", around(trainer, "cross_entropy_sum", head_without_gradient)),
    Fault("norm's gradient x 1.0001, all norms", "backward", "model.norm", rms_backward(1.0001)),
    Fault("gate's derivative x 1.0001", "backward", f"{LAST}.mlp", backward(derivatives._SwiGlu, silu_as_sigmoid)),
    Fault("rotation turned back wrongly", "backward", f"{LAST}.self_attn", backward(derivatives._Rotate, turned_too_far)),
    Fault("gradient of queries x 1.0001", "backward", f"{LAST}.self_attn",
          around(model, "attend", lambda o, q, k, v, causal: o(scaled_backward(1.0001)(q), k, v, causal))),
    Fault("gradient of a product's input x 0.999", "backward", f"{L0}.mlp.down_proj",
          with_built(lambda t: setattr(t.model.get_submodule(f"{L0}.mlp"), "forward", _input_scaled(t.model.get_submodule(f"{L0}.mlp"))))),
    Fault("gradient through one block's by-pass lost", "backward", L0,
          with_built(lambda t: setattr(t.model.get_submodule(L0), "forward", _no_bypass(t.model.get_submodule(L0))))),
    Fault("embedding's gradient x 1.0001", "backward", "model.embed_tokens",
          gradient("model.embed_tokens.weight", lambda g: g * 1.0001)),
    Fault("a gradient with two rows exchanged", "backward", f"{L0}.mlp.gate_proj",
          gradient(f"{L0}.mlp.gate_proj.weight", lambda g: torch.cat([g[1:2], g[:1], g[2:]]))),
    Fault("a gradient in bf16", "backward", f"{L1}.self_attn.k_proj",
          gradient(f"{L1}.self_attn.k_proj.weight", lambda g: g.bfloat16().float())),
    Fault("one element of a gradient is 0", "backward", f"{L0}.self_attn.q_proj",
          gradient(f"{L0}.self_attn.q_proj.weight", lambda g: torch.where(g == g.abs().max(), 0 * g, g))),
    Fault("a key norm's gradient, the other sign", "backward", f"{L0}.self_attn.k_norm",
          gradient(f"{L0}.self_attn.k_norm.weight", lambda g: -g)),
    Fault("divided by the micro-batch's tokens", "accumulation", "", around(trainer.Trainer, "accumulate", halves_as_mean)),
    Fault("all gradients, each a little more", "accumulation", "", around(trainer.Trainer, "accumulate", first_half_only)),
    Fault("all gradients x 0.9999", "accumulation", "", gradients(lambda n, g: g * 0.9999)),
    Fault("all gradients in fp16", "accumulation", "", gradients(lambda n, g: (g * 1024).half().float() / 1024)),
    Fault("clipped by value", "clip", "", around(optim.Optimizer, "clip_gradients", clip_by_value)),
    Fault("embedding left out of the clipping", "clip", "model.embed_tokens",
          around(optim.Optimizer, "clip_gradients", clip_without("model.embed_tokens.weight"))),
    Fault("clipped once more, a thousandth lower", "clip", "", around(optim.Optimizer, "clip_gradients", clip_twice)),
    Fault("norm of the largest elements", "clip", "",
          around(optim, "gradient_norm", lambda o, g: max(x.abs().max() for x in g) * 20)),
    Fault("moments kept in bf16", "moments", "", after_step(moments_in_bf16)),
    Fault("a first moment of another layer", "moments", f"{L0}.input_layernorm", after_step(moments_of_neighbours)),
    Fault("one momentum x 1.001", "moments", f"{L1}.mlp.up_proj", after_step(momentum_of_one), "muon"),
    Fault("moments forgotten on resume", "moments", "", around(optim.Optimizer, "load", reset_on_resume), late=True),
    Fault("steps forgotten on resume", "update", "", around(optim.Optimizer, "load", steps_forgotten), late=True),
    Fault("decay through the gradient", "moments", "", before_step(l2_not_decoupled)),
    Fault("norms decayed by 0.01", "update", "", after_step(decay_of(1, 0.01))),
    Fault("matrices decayed by a thousandth more", "update", "", after_step(decay_of(2, 1e-3))),
    Fault("one weight in bf16 after each step", "update", f"{L0}.mlp.down_proj", update_of(f"{L0}.mlp.down_proj.weight", rounded)),
    Fault("one row never updated", "update", f"{L1}.mlp.gate_proj", update_of(f"{L1}.mlp.gate_proj.weight", as_it_was)),
    Fault("an update into a copy", "update", f"{L0}.self_attn.q_proj", with_built(noncontiguous)),
    Fault("a norm's update x 1.01", "update", "model.norm", update_of("model.norm.weight", lambda b, a: b + 1.01 * (a - b))),
    Fault("an update upside down", "update", f"{L1}.input_layernorm", update_of(f"{L1}.input_layernorm.weight", lambda b, a: 2 * b - a)),
    Fault("epsilon 1e-8 -> 1e-7", "update", "", adamw(epsilon=lambda e: 10 * e)),
    Fault("Muon with another polynomial", "update", "",
          lambda patch: patch.setattr(optim, "ORTHOGONALISATION", (3.4445, -4.7750, 2.0325)), "muon"),
    Fault("Muon without Nesterov", "update", "", around(optim, "directions", without_nesterov), "muon"),
    Fault("rate x 0.999", "schedule", "", around(optim.Optimizer, "step", lambda o, self, rate: o(self, rate * 0.999))),
    Fault("cosine that ends at 0", "schedule", "",
          around(launch, "schedule_of", lambda o, s: o(s.model_copy(update={"final_rate": 0.0}))), late=True),
    Fault("warm-up left out", "schedule", "",
          around(optim.Schedule, "at", lambda o, self, step: o(self, max(step, 1))), late=True),
]  # fmt: skip


def _input_scaled(mlp: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate, up = model.linears(x, mlp.gate_proj.weight, mlp.up_proj.weight)
        how = products.chosen()
        product = F.silu(gate) * up if how is None else how.operations.swiglu(gate, up)
        return _ByInput.apply(product, model.linear(product, mlp.down_proj.weight))  # type: ignore[no-any-return,no-untyped-call]

    return forward


class _ByInput(torch.autograd.Function):
    """Passes a product on; backward, takes a thousandth of it away from its input by a second way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *found: Any) -> Any:
        (x,) = ctx.saved_tensors
        return 1e-3 * x * found[0].norm() / x.norm(), found[0]


def _no_bypass(block: Any) -> Callable[..., Tensor]:
    def forward(x: Tensor, *a: Any) -> Tensor:
        x = x + block.self_attn(block.input_layernorm(x), *a)
        return _Scaled.apply(x, 0.9999) + block.mlp(block.post_attention_layernorm(x))  # type: ignore[no-any-return,no-untyped-call]

    return forward
