"""How a fault is planted: one thing in the training's own code is changed while a candidate trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from ambidex import derivatives, launch, optim, trainer
from ambidex.fused import operations

Patch = pytest.MonkeyPatch
LAST = "model.layers.-1"  # whichever it is: backward meets first there what is planted in every layer
OF_MUON = ((optim, "directions"), (optim, "move"))


@dataclass(frozen=True)
class Fault:
    name: str
    stage: str
    module: str
    plant: Callable[[Patch], None]
    optimizer: str = ""  # "" for both recipes
    late: bool = False  # silent at step 0

    def module_of(self, layers: int) -> str:
        return self.module.replace(LAST, f"model.layers.{layers - 1}")


def around(owner: Any, name: str, change: Callable[..., Any]) -> Callable[[Patch], None]:
    """Replace ``owner.name`` by ``change(original, *arguments)``."""

    def plant(patch: Patch) -> None:
        original = getattr(owner, name)
        patch.setattr(owner, name, lambda *a, **k: change(original, *a, **k))
        if (
            owner is derivatives or (owner, name) in OF_MUON
        ):  # compiled passes have the same operations, so named
            compiled = getattr(operations.Fused, name)
            patch.setattr(operations.Fused, name, lambda self, *a: change(partial(compiled, self), *a))
        if (owner, name) == (trainer, "cross_entropy_sum"):
            over_some = trainer.sampled_cross_entropy_sum
            patch.setattr(
                trainer,
                "sampled_cross_entropy_sum",
                lambda *a: change(lambda *b: over_some(*b, a[-1]), *a[:-1]),
            )

    return plant


def backward(owner: type[torch.autograd.Function], change: Callable[..., Any]) -> Callable[[Patch], None]:
    """Replace the gradients of an operation of `derivatives.py`, and of its compiled form, by ``change(original, ctx, gradient)``."""

    def plant(patch: Patch) -> None:
        original: Any = owner.backward
        patch.setattr(owner, "backward", staticmethod(lambda *a: change(original, *a)))
        form = getattr(operations, owner.__name__)
        compiled: Any = form.backward  # whose first input, the passes, has no gradient
        patch.setattr(
            form, "backward", staticmethod(lambda *a: (None, *change(lambda *b: compiled(*b)[1:], *a)))
        )

    return plant


def in_layer(
    part: str, layer: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[Patch], None]:
    """Change what a part of one layer puts out: a subclass's forward, so that hooks see it as the module's own."""

    def build(original: Any, *a: Any, **k: Any) -> Any:
        found = original(*a, **k)
        module = found.model.get_submodule(f"model.layers.{layer}.{part}")
        forward = module.forward
        module.forward = lambda *x, **y: change(forward(*x, **y))
        return found

    return around(launch, "build", build)


def with_built(change: Callable[[trainer.Trainer], None]) -> Callable[[Patch], None]:
    def build(original: Any, *a: Any, **k: Any) -> Any:
        found = original(*a, **k)
        change(found)
        return found

    return around(launch, "build", build)


def gradient(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Patch], None]:
    return with_built(lambda t: dict(t.model.named_parameters())[name].register_hook(change))


def adamw(**changes: Any) -> Callable[[Patch], None]:
    def change(t: trainer.Trainer) -> None:
        for key, value in changes.items():
            setattr(t.optimizer._adamw, key, value(getattr(t.optimizer._adamw, key)))

    return with_built(change)
