"""From settings to a finished run: device, text, run folder, model; then the loop; then what to type next."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ambidex import plan, runs
from ambidex.card import between_products, leg, measured, new_card, was_compiled, what_decides_numbers
from ambidex.cardfile import CARD
from ambidex.compare import tracing
from ambidex.compare.again import raise_floor
from ambidex.config import Resolved, Settings
from ambidex.device import cpu as processor
from ambidex.device import image
from ambidex.device.choose import Choice, choose
from ambidex.device.machine import Cpu
from ambidex.engine import PRECISIONS, TORCHS_OWN, Device
from ambidex.errors import Exit, NotThere, Problem, Problems
from ambidex.escaping import one_line
from ambidex.events import event_files
from ambidex.guard import cpu_guard
from ambidex.model import LanguageModel, initialise
from ambidex.optim import Optimizer, Schedule
from ambidex.parallel.group import Group
from ambidex.parallel.place import Place, launched
from ambidex.parallel.together import joined
from ambidex.resume import (
    check_fits,
    check_same_text,
    named,
    new_run,
    restarted,
    restore_everywhere,
    same_run,
    settings_of,
    shared,
    take,
    unfinished,
)
from ambidex.runs import Run
from ambidex.screen import Screen, line
from ambidex.settings import LARGEST
from ambidex.stops import ECHO, Stops
from ambidex.summary import (
    share_of_peak,
    show_end,
    show_length,
    show_saving,
    show_settings,
    show_size,
    work_of,
    write_summary,
)
from ambidex.text.batches import Batches, validation_batches
from ambidex.text.cache import default_cache
from ambidex.text.tokens import Tokens, prepare
from ambidex.trainer import Trainer, as_it_is, fit

MOST_RESUMES = 200  # that a card tells of: one that grew for ever would one day be too large to be read
WARM_UP_STEPS = 4


@dataclass(frozen=True)
class Outcome:
    """The run, and the exit code that it ended in: 0, or 130 and 143 where a signal stopped it after a checkpoint."""

    run: Run
    exit_code: int


def start(resolved: Resolved) -> Outcome:
    """Everything that `ambidex train` does once its settings are known."""
    place = Place.of(os.environ)
    with Stops(ECHO if launched(os.environ) else 0.0) as stops, ExitStack() as held:
        held.enter_context(place.one_voice())
        choice = choose_device(resolved, place)
        line("device", f"{choice.name}: {choice.reason}")
        for notice in choice.notices:
            line("", notice)
        if inside := image.read():
            line("image", inside.introduction())
        held.enter_context(cpu_guard(choice.forced_by))
        group = held.enter_context(joined(place, resolved.settings.collective_timeout, choice.name))
        group.agree("settings", lambda: shared(resolved.settings))
        resolved = restarted(resolved, group)
        run, resolved = same_run(group, resolved, lambda: named(resolved))
        group.everyone(partial(tracing.check_reference, resolved.settings.from_trace))
        tokens = group.everyone(lambda: text_of(resolved))
        if run is None and resolved.settings.resume and not resolved.settings.dry_run:
            run, resolved = same_run(group, resolved, lambda: unfinished(resolved, tokens, choice))
        if run is not None:
            held.callback(run.unlock)
        card = run.card if run is not None and run.holds_card() else {}
        device = prepare_device(choice, resolved.settings, card, place)
        group.agree("text or numbers", lambda: what_decides_numbers(tokens, device))
        batches = batches_of(resolved.settings, tokens)
        shape = plan.shape_of(resolved.settings, tokens.tokenizer.vocabulary_size)
        show_size(share(resolved.settings, group), shape, device)
        show_saving(resolved.settings, shape)
        if run is not None and card:
            group.from_writer(partial(check_fits, run, resolved.settings, shape.vocabulary_size))
        if resolved.settings.dry_run:
            show_length(resolved.settings, shape, device, batches, tokens.validation_tokens)
            show_settings(resolved)
            return Outcome(run or Run(""), Exit.DONE)
        before = was_compiled(card)  # a run goes on with what it began with
        trainer = build(resolved.settings, device, tokens, group,
                        compiled=before is not False and compiles(resolved, device))  # fmt: skip
        group.agree("model", lambda: {"compiled": trainer.is_compiled()})
        if before and not trainer.is_compiled():
            line("", "before this resume the model was compiled: the last bits may be others")
        if resolved.settings.time and not card:
            take_time(trainer)
        show_length(trainer.settings, shape, device, batches, tokens.validation_tokens)
        if run is None:
            run, _ = same_run(group, resolved, lambda: (new_run(resolved), resolved))
            assert run is not None
            held.callback(run.unlock)
        group.from_writer(partial(take, run, card))
        group.begin(os.fsencode(run.path).hex())
        return carry_on(trainer, run, card, choice, stops, resolved.origins)


def share(settings: Settings, group: Group) -> Settings:
    """What one process of the group computes, for an estimate of its memory. Raises Problems where there is too little."""
    if group.size > settings.batch_size:
        raise Problems(
            Problem("There are more processes than sequences in a step.",
                    found=f"{group.size} processes, --batch-size {settings.batch_size}", wanted="at least one for each process",
                    fix=f"--batch-size {group.size}, or fewer processes")
        )  # fmt: skip
    return settings.model_copy(update={"batch_size": group.most_rows(settings.batch_size)})


def choose_device(resolved: Resolved, place: Place) -> Choice:
    """The device of this process: of several on a host with GPUs, each has its own."""
    origin, asked = resolved.kind("device"), resolved.settings.device
    choice = choose(asked, origin, asked=resolved.asked_devices)
    own = place.own_device(choice.name, asked)
    return choice if own == choice.name else choose(own, origin, asked={})


def carry_on(trainer: Trainer, run: Run, card: Mapping[str, Any], choice: Choice, stops: Stops,
             origins: Mapping[str, str]) -> Outcome:  # fmt: skip
    """Train in a run folder that this process holds: from its newest good checkpoint, or from the start."""
    settings = trainer.settings
    if card:
        check_same_text(card, trainer.tokens)
        restore_everywhere(trainer, run)
        if trainer.step >= settings.steps:
            write_what_is_missing(trainer, run)
            line("finished", f"{run.path} has all of its {settings.steps} steps; nothing is left to do.")
            return Outcome(run, Exit.DONE)
        trainer.card = {**card, "resumes": [*card.get("resumes", []), leg(trainer, choice)][-MOST_RESUMES:]}
    else:
        trainer.card = {**new_card(trainer, choice), "origins": dict(origins)}
    run.write_card(trainer.card)
    # Also of a run that is continued: a kill may have come between the card and this file.
    write_tokenizer(trainer, run)
    line("run", f"{run.path}{_from_where(trainer.step, again=bool(card), asked=settings.resume)}")
    stops.listening = True
    trainer.group.agree_on_weights(trainer.model)
    trainer.observer = trainer.group.everyone(
        partial(tracing.observer, trainer, run, partial(rebuilt, trainer))
    )
    work = work_of(trainer)
    with (
        Screen(
            settings.steps,
            trainer.step,
            partial(share_of_peak, trainer, work),
            lambda steps: float(steps * work.mean(steps)),
            silent=not run.writes,
        ) as screen,
        memory_errors_in_words(trainer),
        event_files(run, settings.tensorboard and run.writes, trainer.step),
    ):
        fit(trainer, run, stops, screen)
    if why_not := getattr(trainer.learn, "why_not", ""):
        line("replay", f"no: each kernel was started by the host ({why_not})")
    draw(run)
    run.write_card({**run.card, "measured": measured(trainer)})
    write_summary(trainer, run)
    show_end(trainer, run)
    return Outcome(run, stops.asked or stops.agreed or Exit.DONE)


def _from_where(step: int, *, again: bool, asked: bool) -> str:
    """Where a run goes on; and that it does not, where that is what was asked for."""
    if step:
        return f", from step {step}"
    if again:
        return ", from the start: it has no checkpoint yet"
    return ", a new run: there was none to resume" if asked else ""


def draw(run: Run) -> None:
    """loss.png; that there is none is told, and no reason to go without the rest."""
    try:
        run.plot()
    except runs.NotDrawn as why:
        line("", f"no {runs.PLOT}: {why.problems[0].found}")


def write_tokenizer(trainer: Trainer, run: Run) -> None:
    run.write_bytes(runs.TOKENIZER, trainer.tokens.tokenizer.to_json().encode())


def write_what_is_missing(trainer: Trainer, run: Run) -> None:
    """Plot and summary of a run that was killed after its last checkpoint, and the tokenizer that `ambidex sample` reads."""
    write_tokenizer(trainer, run)
    if not os.path.lexists(run.path / runs.PLOT):
        draw(run)
    if not os.path.lexists(run.path / runs.SUMMARY):
        write_summary(trainer, run, trained_here=False)


def text_of(resolved: Resolved) -> Tokens:
    """The text of a run. Its card has the words that were typed, which need not lead anywhere from where we stand now."""
    try:
        return prepare_text(resolved.settings)
    except Problems as problems:
        if resolved.origins["data"] != CARD:
            raise
        fix = f"{CARD} names it as it was typed: repeat the command in the folder where the run was begun, or add --data PATH"
        raise Problems(
            [replace(one, fix=fix) if isinstance(one, NotThere) else one for one in problems.problems],
            problems.exit_code,
        ) from None


def prepare_text(settings: Settings) -> Tokens:
    tokens = prepare(
        settings.data, tokenizer=settings.tokenizer, vocabulary_size=settings.vocabulary_size, field=settings.field,
        validation_fraction=settings.validation_fraction, cache=default_cache(os.environ), progress=sys.stderr.isatty(),
    )  # fmt: skip
    check_prompt(settings, tokens)
    line("text", f"{tokens.summary}; {tokens.train_tokens:,} tokens to learn from and "
                 f"{tokens.validation_tokens:,} held out; sha256 {tokens.data_hash[:12]}")  # fmt: skip
    return tokens


def check_prompt(settings: Settings, tokens: Tokens) -> None:
    """Raise Problems (exit 3) where the vocabulary cannot spell the prompt: now, and not after a tenth of the steps."""
    if not settings.prompt or not settings.sample_tokens:
        return
    try:
        tokens.tokenizer.encode(settings.prompt)
    except Problems as problems:
        fix = "give another --prompt, or --sample-tokens 0"
        raise Problems([replace(one, fix=fix) for one in problems.problems], problems.exit_code) from None


def prepare_device(
    choice: Choice, settings: Settings, card: Mapping[str, Any], place: Place | None = None
) -> Device:
    """Threads and precision, by rule; a run that is continued keeps the precision on its card."""
    cpu, place = processor.look(), place or Place()
    threads = settings.threads or place.share_of(processor.threads_for_training(cpu))
    asked = str(card.get("precision", settings.precision))
    if asked not in ("auto", *PRECISIONS):
        raise Problems(
            Problem("The run's card names a precision that there is not.", found=one_line(asked), wanted=", ".join(PRECISIONS)),
            Exit.DATA,
        )  # fmt: skip
    precision, why = (
        (asked, "as asked" if not card else "as its card says") if asked != "auto" else rule(choice, cpu)
    )
    each = f" in each of {place.size} processes" if place.size > 1 else ""
    line(
        "numbers",
        f"{precision} ({why}), {threads} thread{'s' * (threads != 1)}{each} on {cpu.name or 'this CPU'}",
    )
    before = between_products(card) if card else ""  # a run goes on with what it began with
    compiled = settings.fused and before != TORCHS_OWN
    device = Device(choice.name, precision, threads, fused=compiled)
    if compiled and device.why_not_fused and not settings.compile:
        line("passes", f"torch's own between products: {device.why_not_fused}")
    if before and (now := device.between_products()) != before:
        line(
            "", f"{now} between products, before this resume {one_line(before)}: the last bits may be others"
        )
    return device


def rule(choice: Choice, cpu: Cpu) -> tuple[str, str]:
    """The precision that "auto" means, and why: by instruction set and chip, never by a stopwatch."""
    if choice.name.startswith("cuda"):
        fast = torch.cuda.get_device_capability(torch.device(choice.name)) >= (8, 0)
        return ("bf16", "this GPU computes in it") if fast else ("fp32", "this GPU has no bf16")
    if choice.name == "cpu" and processor.has_fast_bf16(cpu.isa):
        return "bf16", "this CPU multiplies in it"
    return "fp32", "no bf16 instructions here" if choice.name == "cpu" else "exact on this device"


def batches_of(settings: Settings, tokens: Tokens) -> Batches:
    """The order of the text. Raises Problems (exit 3) where either part of it is too short, before anything is trained."""
    batches = Batches(tokens, settings.context, settings.batch_size, settings.seed)
    next(validation_batches(tokens, settings.context, 1, 1))
    return batches


def compiles(resolved: Resolved, device: Device) -> bool:
    """Whether the model is to be compiled: where somebody asks for it; where a preset does, if it gains by it."""
    return resolved.settings.compile and (device.gains_by_compiling() or resolved.kind("compile") != "preset")


def build(settings: Settings, device: Device, tokens: Tokens, group: Group | None = None, *,
          compiled: bool | None = None) -> Trainer:  # fmt: skip
    """The model with its first weights, its optimizer and its batches, at step 0. ``compiled``: as the settings say."""
    batches = batches_of(settings, tokens)
    shape = plan.shape_of(settings, tokens.tokenizer.vocabulary_size)
    less = plan.less_memory(settings, shape, device.precision, device.free_bytes())
    with device.memory_errors_in_words(less):
        model = LanguageModel(shape)
        initialise(model, settings.seed)
        device.place(model)
    optimizer = Optimizer(
        model, kind=settings.optimizer, betas=(settings.beta1, settings.beta2), epsilon=settings.epsilon,
        momentum=settings.momentum, weight_decay=settings.weight_decay, clip=settings.clip,
        products=device.muon_precision(), norms_at_once=device.norms_at_once(), late=model.late_weights(),
    )  # fmt: skip
    group = group or Group()
    # What is replayed calls no module, so a recorder would see nothing; and processes send gradients while they are made.
    recorded = settings.trace or settings.trace_states or settings.from_trace
    replays = settings.replay and not recorded and group.size == 1
    trainer = Trainer(
        settings,
        device,
        model,
        optimizer,
        schedule_of(settings),
        batches,
        tokens,
        model,
        device.loss_scale(),
        less,
        group=group,
        prepare=partial(device.replayed, weights=list(model.parameters())) if replays else as_it_is,
    )
    if settings.compile if compiled is None else compiled:
        with device.memory_errors_in_words(less):
            trainer.forward, notice = device.compiled(model, partial(try_out, trainer))
        line("compile", notice)
    # Processes step their own copies of the weights, and compiled code may differ between them: Muon takes torch's there.
    # And where the model was compiled it is torch's too, as the card says: whoever goes on has only that to go by.
    if group.size == 1:
        optimizer.compute_by(device.muon_operations())
    return trainer


def try_out(trainer: Trainer, forward: Callable[[Tensor], Tensor]) -> None:
    """Compute the gradients of a micro-batch by ``forward``, with every number of blocks that a step will have, and forget them."""
    trainer.forward = forward
    growth = plan.growth_of(trainer.settings)
    due = (growth.layers, growth.depth_at(trainer.step))
    share = trainer.group.most_rows(trainer.settings.batch_size)
    rows = -(-share // -(-share // trainer.rows_at_once))  # of the first micro-batch, as `accumulate` splits
    zeros = np.zeros((rows, trainer.settings.context), dtype=np.int64)
    among, places = trainer.candidates(zeros)
    inputs, targets = trainer.device.tensor(zeros), trainer.device.tensor(places)
    try:
        for depth in dict.fromkeys(due):
            trainer.model.model.deepen(depth)
            trainer.learn_from(inputs, targets, zeros.size, trainer.scale.value, among)
    finally:
        trainer.model.model.deepen(growth.depth_at(trainer.step))
        trainer.forward = trainer.model
        trainer.optimizer.zero_gradients()


def measure_again(path: Path, legs: int) -> None:
    """Raise the floor in the trace of the run at ``path`` by ``legs`` more legs, on the device that it was trained on.

    Raises Problems: exit 3 where the run, its text or its trace is not there, the doctor's code where its device is not.
    """
    run = Run(path)
    settings = settings_of(run.card)
    choice = choose(str(run.card["device"]["name"]), "flag")
    with cpu_guard(choice.forced_by):
        tokens = prepare_text(settings)
        check_same_text(run.card, tokens)
        device = prepare_device(choice, settings, run.card)
        trainer = build(settings, device, tokens, compiled=was_compiled(run.card))
        raise_floor(trainer, partial(rebuilt, trainer), path, legs)


def memory_errors_in_words(trainer: Trainer) -> AbstractContextManager[None]:
    return trainer.device.memory_errors_in_words(trainer.less_memory)


def rebuilt(trainer: Trainer, device_name: str, precision: str) -> Trainer:
    """The same training once more, at its first step and not compiled, for the legs of `compare/`."""
    settings = trainer.settings.model_copy(update={"compile": False, "replay": False})
    device = Device(device_name, precision, trainer.device.threads, fused=trainer.device.fused)
    return build(settings, device, trainer.tokens, trainer.group)


def schedule_of(settings: Settings) -> Schedule:
    return Schedule(
        settings.schedule, settings.learning_rate, settings.steps,
        settings.warmup_fraction, settings.decay_fraction, settings.final_rate,
    )  # fmt: skip


def most_steps(seconds_of: Callable[[int], float], left: float) -> int:
    """The largest number of steps that take at most ``left`` seconds, at least 1 and no more than a run may have;
    more steps take longer."""
    low, high = 1, 2
    while high < LARGEST and seconds_of(high) <= left:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if seconds_of(middle) <= left else (low, middle)
    return min(low, LARGEST)


def seconds_of_a_step(trainer: Trainer, steps: int) -> float:
    """The median of some steps but the first, which pays for memory and threads."""
    took = [trainer.update().seconds for _ in range(steps)]
    return statistics.median(b - a for a, b in pairwise(took))


def take_time(trainer: Trainer) -> None:
    """Turn --time into --steps: a few steps on trial, undone afterwards, and what an evaluation costs."""
    settings = trainer.settings
    waited = plan.growth_of(settings).step / settings.steps
    with memory_errors_in_words(trainer):
        first = seconds_of_a_step(trainer, WARM_UP_STEPS) if waited else 0.0
        trainer.settings = settings.model_copy(update={"grow_from": 0})  # all blocks
        records = trainer.learn != trainer.learn_from  # a step early on, whose time is not a step's
        last = seconds_of_a_step(trainer, 2 if waited and not records else WARM_UP_STEPS)
        before = trainer.seconds
        predicted = settings.batch_size * settings.context
        trainer.evaluate(predicted)
        token_seconds = (trainer.seconds - before) / predicted
    held_out = trainer.tokens.validation_tokens
    on_the_way = min(settings.evaluation_tokens or held_out, held_out)
    fixed = held_out + (0 if settings.evaluate_every else 9 * on_the_way)
    left = settings.time - before - token_seconds * fixed
    evaluating = token_seconds * on_the_way / settings.evaluate_every if settings.evaluate_every else 0.0

    def seconds_of(steps: int) -> float:
        alone = plan.growth_of(settings.model_copy(update={"steps": steps})).step
        return alone * first + (steps - alone) * last + steps * evaluating

    steps = trainer.group.from_writer(lambda: most_steps(seconds_of, left))
    trainer.settings = settings.model_copy(update={"steps": steps})
    trainer.schedule = schedule_of(trainer.settings)
    initialise(trainer.model, settings.seed)
    trainer.optimizer.reset()
    trainer.scale, trainer.skipped_in_a_row = trainer.device.loss_scale(), 0
    trainer.step, trainer.seconds = 0, 0.0
    trainer.deepen()
    line(
        "time",
        f"{settings.time:,g} s is {steps} steps at {seconds_of(steps) / steps:.3f} s each",
    )
