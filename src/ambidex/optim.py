"""AdamW and Muon, gradient clipping by a norm that is right, and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's first and second, under torch's own names
MOMENTUM = "momentum"  # Muon's one
ROW = 4096  # elements whose squares are added in fp32 before fp64 takes over


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
    """L2 norm over all gradients, fp64 scalar on the host.

    Not ``clip_grad_norm_``: torch's fp32 CPU ``norm`` is low by 3e-3 at 40 M elements in one tensor (torch 2.6 and
    2.13 alike). Norms of short rows, whose squares are added up in fp64, are right to 1e-7. On the host, since one
    small copy costs less than an operation a weight, and Apple's GPUs have no fp64.
    """
    norms = []
    for gradient in gradients:
        flat = gradient.detach().reshape(-1)
        whole = flat.numel() - flat.numel() % ROW
        if whole:
            norms.append(torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1))
        if whole < flat.numel():
            norms.append(torch.linalg.vector_norm(flat[whole:]).view(1))
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    return torch.cat(norms).cpu().double().square().sum().sqrt()


def gradient_norm_at_once(gradients: Iterable[Tensor]) -> Tensor:
    """The same by CUDA's kernel for many tensors, which adds short pieces too, and starts once instead of once a weight."""
    norms = torch._foreach_norm([gradient.detach() for gradient in gradients])
    return torch.stack(list(norms)).cpu().double().square().sum().sqrt()


ORTHOGONALISATION = (
    3.4445,
    -4.7750,
    2.0315,
)  # Jordan et al., "Muon", 2024: steepest at 0, not convergent to 1


def directions(gradients: list[Tensor], momenta: list[Tensor], keep: float, dtype: torch.dtype) -> Tensor:
    """Move ``momenta`` in place to ``keep`` of themselves and the rest of the gradients, and look ahead as Nesterov does.

    All are (rows, columns) fp32. Returns (N, rows, columns) in ``dtype``, each matrix over its own norm.
    """
    torch._foreach_lerp_(momenta, gradients, 1 - keep)
    stack = torch.stack(torch._foreach_lerp(gradients, momenta, keep))
    return (stack / (stack.square().sum(dim=(1, 2), keepdim=True).sqrt() + 1e-7)).to(dtype)


def orthogonalise(stack: Tensor, dtype: torch.dtype = torch.float32, iterations: int = 5) -> Tensor:
    """The nearest thing to an orthogonal matrix for each matrix of a stack, by a Newton-Schulz iteration.

    ``stack`` is (N, rows, columns) of norm 1 each; the result is of the same shape and has singular values between about
    0.7 and 1.2. ``dtype`` is what the iteration computes in. `torch.optim.Muon` (2.9 on) always takes bf16, which many
    CPUs only emulate; we take it where the model's own products do.
    """
    a, b, c = ORTHOGONALISATION
    x = stack.to(dtype)
    tall = x.shape[1] > x.shape[2]
    for _ in range(iterations):
        gram = x.mT @ x if tall else x @ x.mT  # (N, shorter, shorter)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, *((x, polynomial) if tall else (polynomial, x)), beta=a)
    return x


def move(weights: list[Tensor], updates: Tensor, keep: float, rate: float) -> None:
    """Every weight, in place: ``keep`` times itself less ``rate`` times its part of ``updates``, (N, rows, columns)."""
    torch._foreach_mul_(weights, keep)
    torch._foreach_add_(weights, list(updates.to(weights[0].dtype).unbind()), alpha=-rate)


class MuonOperations(Protocol):
    """`directions` and `move`, in fewer passes over memory: what compiled code can do of Muon's step."""

    def directions(
        self, gradients: list[Tensor], momenta: list[Tensor], keep: float, dtype: torch.dtype
    ) -> Tensor: ...

    def move(self, weights: list[Tensor], updates: Tensor, keep: float, rate: float) -> None: ...


class Muon:
    """Momentum, made orthogonal, for the matrices of the blocks; matrices of one shape are stepped together.

    The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the size of AdamW's, so that one learning rate
    and one decay serve both (Liu et al., "Muon is scalable for LLM training", 2025). ``momentum`` is Nesterov's.
    ``fused`` does what stands around the products, for fp32 weights that are laid out by rows.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.named, self.dtype = dict(named), dtype
        self.fused: MuonOperations | None = None
        self.momentum, self.weight_decay = momentum, weight_decay
        self.buffers: dict[str, Tensor] = {}
        by_shape: dict[torch.Size, list[str]] = {}
        for name, parameter in named.items():
            by_shape.setdefault(parameter.shape, []).append(name)
        self._alike = list(by_shape.values())

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for alike in self._alike:
            for name in alike:
                self._buffer(name)  # also of a weight that waits: a checkpoint holds all
            names = [name for name in alike if self.named[name].grad is not None]
            if not names:
                continue
            weights: list[Tensor] = [self.named[name] for name in names]
            gradients: list[Tensor] = [weight.grad for weight in weights]  # type: ignore[misc]
            buffers = [self._buffer(name) for name in names]
            plain = all(
                tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in weights + buffers
            )
            fused = self.fused if plain else None
            prepare, finish = (fused.directions, fused.move) if fused else (directions, move)
            updates = orthogonalise(prepare(gradients, buffers, self.momentum, self.dtype), self.dtype)
            size = 0.2 * max(weights[0].shape) ** 0.5
            finish(weights, updates, 1 - learning_rate * self.weight_decay, learning_rate * size)

    def _buffer(self, name: str) -> Tensor:
        if name not in self.buffers:
            self.buffers[name] = torch.zeros_like(self.named[name])
        return self.buffers[name]


class AdamW:
    """Torch's fused kernel, called directly: moments and update in one pass over memory, for groups of weights.

    ``torch.optim.AdamW`` never picks that kernel on a CPU by itself, and making one imports the whole of torch's
    compiler, a second at every start (torch 2.13). The kernel is there for CPUs and CUDA from torch 2.4 on.
    """

    def __init__(
        self,
        named: Mapping[str, nn.Parameter],
        betas: tuple[float, float],
        epsilon: float,
        weight_decay: float,
    ) -> None:
        self.named = dict(named)
        self.betas, self.epsilon, self.weight_decay = betas, epsilon, weight_decay
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps: dict[
            str, Tensor
        ] = {}  # updates of each weight so far, fp32 scalars, for the bias correction

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        for name, weight in self.named.items():
            if name not in self.moments:
                self.set(name, torch.zeros_like(weight), torch.zeros_like(weight), 0)
        names = [name for name, weight in self.named.items() if weight.grad is not None]
        matrices = [name for name in names if self.named[name].ndim >= 2]
        vectors = [name for name in names if self.named[name].ndim < 2]
        for group, weight_decay in ((matrices, self.weight_decay), (vectors, 0.0)):
            if group:
                self._step_together(group, learning_rate, weight_decay)

    def _step_together(self, names: list[str], learning_rate: float, weight_decay: float) -> None:
        steps = [self.steps[name] for name in names]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [self.named[name] for name in names],
            [self.named[name].grad for name in names],  # type: ignore[misc]
            [self.moments[name][0] for name in names],
            [self.moments[name][1] for name in names],
            [],
            steps,
            lr=learning_rate,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=weight_decay,
            eps=self.epsilon,
            amsgrad=False,
            maximize=False,
        )

    def set(self, name: str, first: Tensor, second: Tensor, steps: int) -> None:
        """Take over both moments of one weight after ``steps`` updates."""
        self.moments[name] = first, second
        self.steps[name] = torch.tensor(float(steps), dtype=torch.float32, device=first.device)


class Optimizer:
    """AdamW for every weight, or Muon for the blocks' matrices and AdamW for the rest.

    Decay is decoupled (Loshchilov and Hutter, 2019) and on matrices only: shrinking a norm's scale is a prior on
    nothing. ``products`` is the precision of Muon's own; ``norms_at_once`` chooses `gradient_norm_at_once`. ``late``
    weights have no gradient until they join; then their moments begin, and their steps count from 1.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        kind: str,
        betas: tuple[float, float],
        epsilon: float,
        momentum: float,
        weight_decay: float,
        clip: float,
        products: torch.dtype = torch.float32,
        norms_at_once: bool = False,
        late: Collection[str] = (),
    ) -> None:
        self.norms_at_once = norms_at_once
        self.named = dict(model.named_parameters())
        self.clip = clip
        self.steps_taken = self.late_steps = 0
        self._late = frozenset(late)
        inner = {n: p for n, p in self.named.items() if kind == "muon" and p.ndim == 2 and ".layers." in n}
        self._muon = Muon(inner, momentum, weight_decay, products)
        rest = {name: p for name, p in self.named.items() if name not in inner}
        self._adamw = AdamW(rest, betas, epsilon, weight_decay)

    def compute_by(self, operations: MuonOperations | None) -> None:
        """What Muon computes around its products from now on: compiled passes, or None for torch's own."""
        self._muon.fused = operations

    def clip_gradients(self, loss_scale: float = 1.0) -> float:
        """Undo the loss scale, then shrink all gradients so that their norm is at most ``clip`` (0: as they are).

        Returns the norm before clipping; where it is not finite the gradients are left alone.
        """
        gradients = [p.grad for p in self.named.values() if p.grad is not None]
        norm_of = gradient_norm_at_once if self.norms_at_once and gradients else gradient_norm
        norm = float(norm_of(gradients)) / loss_scale
        factor = (self.clip / norm if 0 < self.clip < norm else 1.0) / loss_scale
        if factor != 1.0 and math.isfinite(norm):
            torch._foreach_mul_(gradients, factor)
        return norm

    def step(self, learning_rate: float) -> None:
        self._adamw.step(learning_rate)
        self._muon.step(learning_rate)
        self.steps_taken += 1
        self.late_steps += any(self.named[name].grad is not None for name in self._late)

    def zero_gradients(self) -> None:
        for parameter in self.named.values():
            parameter.grad = None

    def reset(self) -> None:
        """Forget all moments, as before the first step."""
        self._adamw.moments.clear()
        self._muon.buffers.clear()
        self.steps_taken = self.late_steps = 0

    def state(self) -> dict[str, Tensor]:
        """Every moment in fp32: ``exp_avg.NAME`` and ``exp_avg_sq.NAME``, or ``momentum.NAME`` for Muon's."""
        moments = {
            f"{kind}.{name}": moment
            for name, pair in self._adamw.moments.items()
            for kind, moment in zip(MOMENTS, pair)
        }
        return moments | {f"{MOMENTUM}.{name}": buffer for name, buffer in self._muon.buffers.items()}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """What ``state()`` holds after a first step, by name."""
        expected = {f"{kind}.{n}": tuple(p.shape) for n, p in self._adamw.named.items() for kind in MOMENTS}
        return expected | {f"{MOMENTUM}.{n}": tuple(p.shape) for n, p in self._muon.named.items()}

    def load(self, moments: Mapping[str, Tensor], steps_taken: int, late_steps: int = 0) -> None:
        """Continue from ``state()`` of a run that has taken ``steps_taken`` steps, its late weights ``late_steps``."""
        self.reset()
        self.steps_taken, self.late_steps = steps_taken, late_steps
        if not steps_taken:
            return
        for name, parameter in self._adamw.named.items():
            first, second = (moments[f"{kind}.{name}"].to(parameter.device, copy=True) for kind in MOMENTS)
            self._adamw.set(name, first, second, late_steps if name in self._late else steps_taken)
        for name, parameter in self._muon.named.items():
            self._muon.buffers[name] = moments[f"{MOMENTUM}.{name}"].to(parameter.device, copy=True)
