"""The training loop. It knows batches, a model, an optimizer and a Device, and no kind of device."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ambidex import health
from ambidex.candidates import draw
from ambidex.checkpoint import Checkpoint
from ambidex.config import Settings
from ambidex.engine import Device, LossScale, available_bytes
from ambidex.errors import Exit, Problem, Problems
from ambidex.loss import IGNORED, Among, cross_entropy_sum, sampled_cross_entropy_sum
from ambidex.model import LanguageModel
from ambidex.optim import Optimizer, Schedule
from ambidex.parallel.group import GradientSum, Group
from ambidex.plan import growth_of
from ambidex.replay import Learn
from ambidex.rows import Row
from ambidex.runs import Run
from ambidex.sampling import generate
from ambidex.saver import Saver, saver_of
from ambidex.screen import Screen
from ambidex.stops import Stops
from ambidex.text.batches import Batches, validation_batches
from ambidex.text.tokens import Tokens
from ambidex.watchdog import Watchdog

EVALUATED = 4096  # tokens at once, where a step takes fewer: without gradients they need no more memory


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


def as_it_is(learn: Learn) -> Learn:
    return learn


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
    skipped_in_a_row: int = 0  # updates, by `non_finite = "skip"`
    best: tuple[float, int] | None = None  # lowest validation loss at a saved step, and that step
    card: Mapping[str, Any] = field(
        default_factory=dict
    )  # of the run; saved along, in case that its file is lost
    observer: Observer = field(default_factory=Observer)
    group: Group = field(default_factory=Group)  # the processes that train together; by default one
    prepare: Callable[[Learn], Learn] = as_it_is  # what the device makes of `learn_from`
    learn: Learn = field(init=False)
    rows_at_once: int = field(init=False)  # of a forward pass, at most
    _gradient_sum: GradientSum = field(init=False)

    def __post_init__(self) -> None:
        share = self.group.most_rows(self.settings.batch_size)
        self.rows_at_once = min(self.settings.micro_batch_size or share, share)
        self._begin_at(growth_of(self.settings).depth_at(self.step))

    def deepen(self) -> None:
        """Let as many blocks compute as are due in the next step: those that waited join at theirs."""
        depth = growth_of(self.settings).depth_at(self.step)
        if depth != self.model.model.depth:
            self._begin_at(depth)

    def _begin_at(self, depth: int) -> None:
        self.model.model.deepen(depth)
        self.learn = self.prepare(self.learn_from)
        self._gradient_sum = self.group.gradient_sum(self.model)

    def is_compiled(self) -> bool:
        return self.forward is not self.model

    def update(self) -> Row:
        """One optimizer update. Raises `NotFinite` (exit 5) where loss or gradient are not finite and may not be."""
        started = time.perf_counter()
        self.deepen()
        self.group.step = self.step
        rate = self.schedule.at(self.step)
        inputs, targets = self.batches.batch(self.step)
        self.observer.begins(self, inputs, targets)
        loss = self.accumulate(inputs, targets)
        self.observer.has_gradients(self, loss)
        norm = self.optimizer.clip_gradients(self.scale.value)
        if math.isfinite(loss) and math.isfinite(norm):
            self.optimizer.step(rate)
            self.scale.finite_step()
            self.skipped_in_a_row = 0
        elif math.isfinite(loss) and self.scale.can_shrink():
            self.scale.shrink()  # fp16 overflowed: this batch is skipped, as is usual
        elif self.settings.non_finite == "skip" and self.skipped_in_a_row < health.MOST_SKIPPED:
            self.skipped_in_a_row += 1
        else:
            self.optimizer.zero_gradients()  # the weights are still those of the step before
            raise NotFinite(self.step + 1, loss, norm)
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

        Sums are divided by the tokens of the whole batch, so any split into micro-batches, and of these among
        processes, gives the same gradient.
        """
        among, answers = self.candidates(targets)
        rows = self.group.rows(len(inputs))
        parts = -(-(rows.stop - rows.start) // self.rows_at_once)
        total = torch.zeros((), dtype=torch.float64)
        with self._gradient_sum.over(parts):
            for some_inputs, some_answers in zip(
                np.array_split(inputs[rows], parts), np.array_split(answers[rows], parts)
            ):
                here = self.device.tensor(some_inputs), self.device.tensor(some_answers)
                total += self.learn(*here, targets.size, self.scale.value, among).cpu().double()
        return self.group.sums(float(total))[0]

    def candidates(self, targets: NDArray[np.int64]) -> tuple[Among | None, NDArray[np.int64]]:
        """What the softmax of a batch runs over, None for the whole vocabulary, and the places of the targets in it."""
        if self.settings.sampled_softmax == 1:
            return None, targets
        drawn = draw(targets, self.model.shape.vocabulary_size, self.settings.sampled_softmax)
        here = Among(self.device.tensor(drawn.tokens), self.device.tensor(drawn.log_weights))
        return here, drawn.places(targets)

    def learn_from(
        self,
        inputs: Tensor,
        targets: Tensor,
        predicted: int,
        scale: float | Tensor,
        among: Among | None = None,
    ) -> Tensor:
        """Add the gradients of a micro-batch, (micro-batch, context), and return its part of the loss.

        ``predicted`` is the tokens of the whole batch; ``scale`` makes gradients larger, and not the loss.
        ``among``: what the softmax runs over, and ``targets`` are places in; the whole vocabulary where it is None.
        """
        with self.device.autocast():
            hidden = self.forward(inputs)  # (micro-batch, context, width)
            if among is None:
                loss = cross_entropy_sum(self.model, hidden, targets) / predicted
            else:
                loss = sampled_cross_entropy_sum(self.model, hidden, targets, among) / predicted
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    @torch.no_grad()
    def evaluate(self, limit_tokens: int = 0) -> float:
        """Mean loss in nats per token over the held-out text, or over ``limit_tokens`` of it spread evenly."""
        started = time.perf_counter()
        total, counted = 0.0, 0
        rows = min(4 * self.rows_at_once, max(self.rows_at_once, EVALUATED // self.settings.context))
        batches = validation_batches(self.tokens, self.settings.context, rows, limit_tokens)
        for inputs, targets in self.group.turns(batches):
            with self.device.autocast():
                hidden = self.model(self.device.tensor(inputs))
                total += float(cross_entropy_sum(self.model, hidden, self.device.tensor(targets)))
            counted += int((targets != IGNORED).sum())
        total, predicted = self.group.sums(total, counted)
        self.seconds += time.perf_counter() - started
        return total / predicted

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
            "late_steps": self.optimizer.late_steps,
            "skipped_in_a_row": self.skipped_in_a_row,
            "config": self.settings.model_dump(mode="json"),
            "precision": self.device.precision,
            "card": dict(self.card),
            "data_hash": self.tokens.data_hash,
        }
        return Checkpoint(self.step, model, self.optimizer.state(), state)

    @torch.no_grad()
    def restore(self, saved: Checkpoint) -> None:
        """Continue from a verified checkpoint of the same configuration."""
        for name, weight in self.model.named_parameters():
            weight.copy_(saved.model[name])
        steps_taken, late_steps = int(saved.state["optimizer_steps"]), int(saved.state.get("late_steps", 0))
        self.optimizer.load(saved.optimizer, steps_taken, late_steps)
        self.step, self.seconds = saved.step, float(saved.state["seconds"])
        self.deepen()
        self.best = (
            (float(saved.state["best"][0]), int(saved.state["best"][1])) if saved.state["best"] else None
        )
        self.skipped_in_a_row = int(saved.state.get("skipped_in_a_row", 0))
        self.scale.value, self.scale.steps_since_change = saved.state["scale"]


def fit(trainer: Trainer, run: Run, stops: Stops, screen: Screen) -> None:
    """From the step where the trainer stands to the last one, or to the end of the step in which it is told to stop."""
    settings, rhythm = trainer.settings, Rhythm.of(trainer.settings)
    saved = trainer.step
    spikes = health.Spikes.after(row.loss for row in run.metrics)
    saver = saver_of(run, settings.keep, tell=screen.tell, free_bytes=available_bytes)
    report = run.path / "hang.txt" if run.writes else None
    watchdog = Watchdog(settings.step_timeout, report, run.command_to_resume(), lambda: saver.wait(60))
    with saver, watchdog:
        while trainer.step < settings.steps and not stops.heard(trainer.group.highest):
            trainer.observer.between(trainer)
            try:
                with watchdog.step(trainer.step + 1):
                    row = trainer.update()
            except NotFinite as sick:
                note(trainer, run, screen, "stopped", sick.step, sick.loss, sick.norm)
                if trainer.step != saved:  # the last good weights, from which --non-finite skip can go on
                    with watchdog.waiting("The last save"):
                        save(trainer, None, saver)
                        saver.finish()
                raise
            if rhythm.evaluates(row.step):
                whole = row.step == settings.steps
                row = replace(row, val_loss=trainer.evaluate(0 if whole else settings.evaluation_tokens))
            run.append([row])
            screen.show(row)
            if trainer.skipped_in_a_row:
                note(trainer, run, screen, "skipped", row.step, row.loss, row.grad_norm)
            elif spikes.is_spike(row.loss):
                note(trainer, run, screen, "spike", row.step, row.loss, row.grad_norm)
            if rhythm.samples(row.step) and settings.sample_tokens:
                add_sample(trainer, run, screen, row)
            saver.poll()
            if rhythm.saves(row.step):
                with watchdog.waiting(f"The save before that of step {row.step}"):
                    saved = save(trainer, row.val_loss, saver)
        with watchdog.waiting("The last save"):
            if saved != trainer.step:
                save(trainer, None, saver)
            saver.finish()


def save(trainer: Trainer, val_loss: float | None, saver: Saver) -> int:
    """Have a checkpoint written; the old ones that are neither among the newest nor the best go once it is verified."""
    measured = val_loss is not None and math.isfinite(val_loss)  # NaN would stay the best for ever
    if val_loss is not None and measured and (trainer.best is None or val_loss < trainer.best[0]):
        trainer.best = val_loss, trainer.step
    trainer.group.agree_on_weights(trainer.model)
    saver.save(trainer.snapshot(), trainer.best[1] if trainer.best else None)
    return trainer.step


def add_sample(trainer: Trainer, run: Run, screen: Screen, row: Row) -> None:
    """What cannot be written of a sample is told, and no reason to stop."""
    prompt, text = trainer.sample(row.step)
    try:
        run.add_sample(row, trainer.settings.steps, prompt, text)
    except Problems as problems:
        screen.tell("", f"no sample at step {row.step}: {problems.problems[0].found}")


def note(trainer: Trainer, run: Run, screen: Screen, kind: str, step: int, loss: float, norm: float) -> None:
    """Say that a step was not as it should be, and record what it was made of; a full disk must not stop training."""
    words = {
        "skipped": "its update is skipped",
        "stopped": "training stops",
        "spike": "far above the steps before",
    }
    screen.tell(kind, f"step {step}: loss {loss:.4f}, gradient norm {norm:.4g}: {words[kind]}; its batch stands in "
                      f"{run.path / health.HEALTH}")  # fmt: skip
    if not run.writes:
        return
    with suppress(OSError):
        health.record(run.path, kind, step, loss, norm, trainer.batches.starts(step - 1).tolist())


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


class NotFinite(Problems):
    """A step whose loss or gradient is no finite number; exit 5. The weights are those before it."""

    def __init__(self, step: int, loss: float, norm: float) -> None:
        self.step, self.loss, self.norm = step, loss, norm
        what = "loss" if not math.isfinite(loss) else "gradient"
        problem = Problem(
            f"The {what} at step {step} is not finite.", found=f"loss {loss}, gradient norm {norm}", wanted="finite numbers",
            fix="--resume --non-finite skip passes over this step's batch; or a new run at a lower --learning-rate, or "
                "--precision fp32",
        )  # fmt: skip
        super().__init__(problem, Exit.LOSS_NOT_FINITE)
