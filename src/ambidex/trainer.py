"""The training loop. It knows batches, a model, an optimizer and a Device, and no kind of device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambidex import checkpoint
from ambidex.checkpoint import Checkpoint
from ambidex.config import Settings
from ambidex.engine import Device, LossScale
from ambidex.errors import Exit, Problem, Problems
from ambidex.loss import IGNORED, cross_entropy_sum
from ambidex.model import LanguageModel
from ambidex.optim import Optimizer, Schedule
from ambidex.rows import Row
from ambidex.runs import Run
from ambidex.sampling import generate
from ambidex.screen import Screen
from ambidex.stops import Stops
from ambidex.text.batches import Batches, validation_batches
from ambidex.text.tokens import Tokens


class Observer:
    """Sees every step from outside. This one looks away; `compare/` has one that records (--trace)."""

    def between(self, trainer: Trainer) -> None:
        """Before a step, outside its clock."""

    def begins(self, trainer: Trainer, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """The batch is drawn, (batch, context) each."""

    def has_gradients(self, trainer: Trainer, loss: float) -> None:
        """All gradients are there and not yet clipped."""

    def has_stepped(self, trainer: Trainer, norm: float) -> None:
        """The weights are updated; the gradients are still there."""


@dataclass
class Trainer:
    """A training under way: what it is made of, and where it stands."""

    settings: Settings
    device: Device
    model: LanguageModel
    optimizer: Optimizer
    schedule: Schedule
    batches: Batches
    tokens: Tokens
    forward: Callable[[Tensor], Tensor]  # the model, or its compiled form
    scale: LossScale
    less_memory: str = ""  # what to type where the memory does not suffice
    step: int = 0  # updates done
    seconds: float = 0.0  # spent in training since the run's start, pauses left out
    best: tuple[float, int] | None = None  # lowest validation loss at a saved step, and that step
    observer: Observer = field(default_factory=Observer)
    _micro_batches: int = field(init=False, default=1)

    def __post_init__(self) -> None:
        self._micro_batches = self.settings.batch_size // (
            self.settings.micro_batch_size or self.settings.batch_size
        )

    def update(self) -> Row:
        """One optimizer update. Raises Problems (exit 5) where loss or gradient are not finite."""
        started = time.perf_counter()
        rate = self.schedule.at(self.step)
        inputs, targets = self.batches.batch(self.step)
        self.observer.begins(self, inputs, targets)
        loss = self.accumulate(inputs, targets)
        self.observer.has_gradients(self, loss)
        norm = self.optimizer.clip_gradients(self.scale.value)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step(rate)
            self.scale.finite_step()
        elif math.isfinite(loss) and self.scale.can_shrink():
            self.scale.shrink()  # fp16 overflowed: this batch is skipped, as is usual
        else:
            raise _not_finite(self.step + 1, loss, norm)
        self.observer.has_stepped(self, norm)
        self.optimizer.zero_gradients()
        self.device.synchronize()
        self.step += 1
        took = time.perf_counter() - started
        self.seconds += took
        tokens = self.settings.batch_size * self.settings.context
        return Row(self.step, self.step * tokens, loss, None, rate, norm, self.seconds, tokens / took)

    def accumulate(self, inputs: NDArray[np.int64], targets: NDArray[np.int64]) -> float:
        """Gradients of the mean loss of a whole batch, (batch, context) each; returns that loss in nats per token.

        Sums are divided by the tokens of the whole batch, so any split into micro-batches gives the same gradient.
        """
        total = torch.zeros((), dtype=torch.float64)
        for some_inputs, some_targets in zip(
            np.array_split(inputs, self._micro_batches), np.array_split(targets, self._micro_batches)
        ):
            with self.device.autocast():
                hidden = self.forward(self.device.tensor(some_inputs))  # (micro-batch, context, width)
                loss = cross_entropy_sum(self.model, hidden, self.device.tensor(some_targets)) / targets.size
            (loss * self.scale.value).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().double().cpu()
        return float(total)

    @torch.no_grad()
    def evaluate(self, limit_tokens: int = 0) -> float:
        """Mean loss in nats per token over the held-out text, or over ``limit_tokens`` of it spread evenly."""
        started = time.perf_counter()
        total, counted = 0.0, 0
        rows = self.settings.micro_batch_size or self.settings.batch_size
        for inputs, targets in validation_batches(self.tokens, self.settings.context, rows, limit_tokens):
            with self.device.autocast():
                hidden = self.model(self.device.tensor(inputs))
                total += float(cross_entropy_sum(self.model, hidden, self.device.tensor(targets)))
            counted += int((targets != IGNORED).sum())
        self.seconds += time.perf_counter() - started
        return total / counted

    def sample(self, step: int) -> tuple[str, str]:
        """A prompt and how the model goes on: the setting's prompt, or else how the held-out text begins."""
        tokenizer, settings = self.tokens.tokenizer, self.settings
        begun = tokenizer.encode(settings.prompt) if settings.prompt else self.tokens.validation[:48]
        prompt = [int(token) for token in begun] or [0]
        chosen = generate(self.model, self.device, prompt, settings.sample_tokens, temperature=0.8,
                          seed=settings.seed, name=f"sample/{step}")  # fmt: skip
        text = tokenizer.decode(list(chosen)).decode("utf-8", "replace")
        return tokenizer.decode(prompt).decode("utf-8", "replace"), text

    def snapshot(self) -> Checkpoint:
        """Everything that the rest of the run depends on."""
        model = {name: weight.detach() for name, weight in self.model.named_parameters()}
        state = {
            "seconds": self.seconds,
            "best": self.best,
            "scale": [self.scale.value, self.scale.steps_since_change],
            "optimizer_steps": self.optimizer.steps_taken,
            "config": self.settings.model_dump(mode="json"),
            "data_hash": self.tokens.data_hash,
        }
        return Checkpoint(self.step, model, self.optimizer.state(), state)

    @torch.no_grad()
    def restore(self, saved: Checkpoint) -> None:
        """Continue from a verified checkpoint of the same configuration."""
        for name, weight in self.model.named_parameters():
            weight.copy_(saved.model[name])
        self.optimizer.load(saved.optimizer, int(saved.state["optimizer_steps"]))
        self.step, self.seconds = saved.step, float(saved.state["seconds"])
        self.best = (
            (float(saved.state["best"][0]), int(saved.state["best"][1])) if saved.state["best"] else None
        )
        self.scale.value, self.scale.steps_since_change = saved.state["scale"]


def fit(trainer: Trainer, run: Run, stops: Stops, screen: Screen) -> None:
    """From the step where the trainer stands to the last one, or to the end of the step in which it is told to stop."""
    settings, rhythm = trainer.settings, Rhythm.of(trainer.settings)
    saved = trainer.step
    while trainer.step < settings.steps and stops.asked is None:
        trainer.observer.between(trainer)
        row = trainer.update()
        if rhythm.evaluates(row.step):
            whole = row.step == settings.steps
            row = replace(row, val_loss=trainer.evaluate(0 if whole else settings.evaluation_tokens))
        run.append([row])
        screen.show(row)
        if rhythm.samples(row.step) and settings.sample_tokens:
            run.add_sample(row, settings.steps, *trainer.sample(row.step))
        if rhythm.saves(row.step):
            saved = save(trainer, run, row.val_loss)
    if saved != trainer.step:
        save(trainer, run, None)


def save(trainer: Trainer, run: Run, val_loss: float | None) -> int:
    """Write a checkpoint, then drop the old ones that are neither among the newest nor the best."""
    if val_loss is not None and (trainer.best is None or val_loss < trainer.best[0]):
        trainer.best = val_loss, trainer.step
    checkpoint.save(run.checkpoints, trainer.snapshot())
    checkpoint.keep_only(run.checkpoints, trainer.settings.keep, trainer.best[1] if trainer.best else None)
    return trainer.step


@dataclass(frozen=True)
class Rhythm:
    """Which steps are evaluated, sampled and saved. The last one is all three."""

    steps: int
    evaluate_every: int
    sample_every: int
    save_every: int

    @classmethod
    def of(cls, settings: Settings) -> Rhythm:
        evaluate = settings.evaluate_every or max(1, settings.steps // 10)
        return cls(
            settings.steps, evaluate, settings.sample_every or evaluate, settings.save_every or evaluate
        )

    def evaluates(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.steps

    def samples(self, step: int) -> bool:
        return step % self.sample_every == 0 or step == self.steps

    def saves(self, step: int) -> bool:
        return step % self.save_every == 0 or step == self.steps


def _not_finite(step: int, loss: float, norm: float) -> Problems:
    what = (
        f"The loss at step {step} is not finite."
        if not math.isfinite(loss)
        else f"The gradient at step {step} is not finite."
    )
    return Problems(
        Problem(what, found=f"loss {loss}, gradient norm {norm}", wanted="finite numbers",
                fix="continue from the last checkpoint with a new run at a lower --learning-rate, or --precision fp32"),
        Exit.LOSS_NOT_FINITE,
    )  # fmt: skip
