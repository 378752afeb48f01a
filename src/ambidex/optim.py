"""The optimizer (AdamW), gradient clipping by a norm that is right, and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PREFIXES = ("exp_avg", "exp_avg_sq")  # the first and second moment, under torch's own names


@dataclass(frozen=True)
class Schedule:
    """Learning rate by step: linear warm-up, then a cosine or a plateau with a linear end.

    ``warmup`` and ``decay`` are fractions of all steps; ``floor`` is the last rate as a fraction of the peak.
    "wsd" is warm-up, stable, decay (Hu et al., "MiniCPM", 2024).
    """

    kind: str
    peak: float
    steps: int
    warmup: float
    decay: float
    floor: float

    def at(self, step: int) -> float:
        """The rate of update number ``step``, counted from 0."""
        warmup_steps = max(1, round(self.steps * self.warmup))
        if step < warmup_steps:
            return self.peak * (step + 1) / warmup_steps
        if self.kind == "wsd":
            decay_steps = max(1, round(self.steps * self.decay))
            left = (self.steps - step) / decay_steps
            return self.peak * (self.floor + (1 - self.floor) * min(1.0, left))
        progress = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.peak * (self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """L2 norm over all gradients, fp64 scalar on their device.

    Not ``clip_grad_norm_``: torch's fp32 CPU ``norm`` is low by 3e-3 at 40 M elements in one tensor (torch 2.6 and
    2.13 alike). Sums of squares in rows of at most 2^16 elements, added up in fp64, are right to 1e-7.
    """
    total: Tensor | None = None
    for gradient in gradients:
        flat = gradient.detach().reshape(-1)
        whole = flat.numel() - flat.numel() % 65_536
        squares = torch.linalg.vector_norm(flat[:whole].view(-1, 65_536), dim=1).double().square().sum()
        squares = squares + torch.linalg.vector_norm(flat[whole:]).double().square()
        total = squares if total is None else total + squares
    return (total if total is not None else torch.zeros((), dtype=torch.float64)).sqrt()


ORTHOGONALISATION = (3.4445, -4.7750, 2.0315)  # Jordan et al., "Muon", 2024: steepest at 0, not convergent to 1


def orthogonalise(stack: Tensor, iterations: int = 5) -> Tensor:
    """The nearest thing to an orthogonal matrix for each matrix of a stack, by a Newton-Schulz iteration.

    ``stack`` is (N, rows, columns) fp32; the result has the same shape and singular values between about 0.7 and 1.2.
    In fp32 throughout: `torch.optim.Muon` (2.9 on) computes in bf16, which many CPUs only emulate.
    """
    a, b, c = ORTHOGONALISATION
    tall = stack.shape[1] > stack.shape[2]
    x = stack.mT if tall else stack
    x = x / (x.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # (N, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon:
    """Momentum, made orthogonal, for the matrices of the blocks; matrices of one shape are stepped together.

    The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of AdamW's, so that one learning rate
    and one decay serve both (Liu et al., "Muon is scalable for LLM training", 2025). ``momentum`` is Nesterov's.
    """

    def __init__(self, named: dict[str, nn.Parameter], momentum: float, weight_decay: float) -> None:
        self.named = named
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers: dict[str, Tensor] = {}
        shapes: dict[torch.Size, list[str]] = {}
        for name, parameter in named.items():
            shapes.setdefault(parameter.shape, []).append(name)
        self._names_by_shape = list(shapes.values())

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for names in self._names_by_shape:
            parameters = [self.named[name] for name in names if self.named[name].grad is not None]
            if not parameters:
                continue
            gradients = [p.grad for p in parameters]
            buffers = [
                self.buffers.setdefault(name, torch.zeros_like(self.named[name]))
                for name in names
                if self.named[name].grad is not None
            ]
            torch._foreach_lerp_(buffers, gradients, 1 - self.momentum)
            directions = torch._foreach_lerp(gradients, buffers, self.momentum)
            rows, columns = parameters[0].shape
            size = 0.2 * max(rows, columns) ** 0.5
            updates = orthogonalise(torch.stack(directions))
            torch._foreach_mul_(parameters, 1 - learning_rate * self.weight_decay)
            torch._foreach_add_(parameters, updates.unbind(), alpha=-learning_rate * size)


class AdamW:
    """Decoupled weight decay on matrices only (Loshchilov and Hutter, 2019), by torch's fused kernel.

    Norm weights (one-dimensional) are not decayed: shrinking a scale is not a prior on anything.
    """

    def __init__(
        self, model: nn.Module, betas: tuple[float, float], epsilon: float, weight_decay: float, clip: float
    ) -> None:
        self.named = dict(model.named_parameters())
        self.clip = clip
        self.steps_taken = 0
        matrices = [p for p in self.named.values() if p.ndim >= 2]
        vectors = [p for p in self.named.values() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=epsilon, fused=True)

    def clip_gradients(self) -> float:
        """Scale all gradients so that their norm is at most ``clip``; returns the norm before. 0 means no clipping."""
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        norm = float(gradient_norm(gradients))
        if self.clip > 0 and norm > self.clip:
            torch._foreach_mul_(gradients, self.clip / norm)
        return norm

    def step(self, learning_rate: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        self.steps_taken += 1

    def zero_gradients(self) -> None:
        self._optimizer.zero_grad(set_to_none=True)

    def reset(self) -> None:
        """Forget all moments, as before the first step."""
        self._optimizer.state.clear()
        self.steps_taken = 0

    def state(self) -> dict[str, Tensor]:
        """Both moments of every weight, as ``exp_avg.NAME`` and ``exp_avg_sq.NAME``, fp32."""
        states = self._optimizer.state
        return {f"{kind}.{name}": states[p][kind] for name, p in self.named.items() if p in states for kind in PREFIXES}

    def load(self, moments: Mapping[str, Tensor], steps_taken: int) -> None:
        """Continue from ``state()`` of a run that has taken ``steps_taken`` steps."""
        self.reset()
        self.steps_taken = steps_taken
        if not steps_taken:
            return
        for name, parameter in self.named.items():
            state = {kind: moments[f"{kind}.{name}"].to(parameter.device) for kind in PREFIXES}
            step = torch.tensor(float(steps_taken), dtype=torch.float32, device=parameter.device)
            self._optimizer.state[parameter] = {"step": step, **state}
