"""What a run says of itself before it starts and when it ends: the plan, summary.md, and what to type next."""

from __future__ import annotations

import math
import os
import re
import shlex
import statistics

from ambidex import health, plan, runs
from ambidex.config import Resolved, Settings
from ambidex.engine import Device, available_bytes
from ambidex.escaping import markdown, one_line, printable
from ambidex.model import Shape
from ambidex.rows import METRICS, Row
from ambidex.runs import Run
from ambidex.saver import SPARE
from ambidex.screen import line
from ambidex.text.batches import Batches
from ambidex.text.tokens import Tokens
from ambidex.trainer import Trainer

WORSE = 1.2  # times the first loss: noise does not bring a run there, a rate that is too high does


def show_size(settings: Settings, shape: Shape, device: Device) -> None:
    """Parameters and memory by part, against what is free, before any of it is taken."""
    parts = shape.parameters()
    line(
        "model",
        f"{settings.preset}: {sum(parts.values()):,} parameters, {shape.layers} layer{'s' * (shape.layers != 1)} of width {shape.width}",
    )
    line("", ", ".join(f"{part} {count:,}" for part, count in parts.items()))
    if shape.ngrams > 1:
        line(
            "",
            f"n-grams: a second table, looked up by the last 2 to {shape.ngrams} tokens together; "
            "with it the model cannot be exported",
        )
    needed, free = plan.memory(settings, shape, device.precision), device.free_bytes()
    room = f" of {plan.spell_bytes(free)} free" if free is not None else ""
    line("memory", f"about {plan.spell_bytes(needed.total)}{room} (an estimate: "
         + ", ".join(f"{part} {plan.spell_bytes(size)}" for part, size in needed.parts.items()) + ")")  # fmt: skip
    if free is not None and needed.total > free:
        # Linux grants memory that it does not have and kills whoever uses it, so this may be the last word.
        line("", "that is more than is free, and the system may end the process without a word; try "
             + plan.less_memory(settings, shape, device.precision, free))  # fmt: skip


def show_saving(settings: Settings, shape: Shape) -> None:
    """What a checkpoint takes, on disk and in memory, and how much room there is."""
    size, free = plan.snapshot_bytes(settings, shape), available_bytes()
    line("saving", f"about {plan.spell_bytes(size)} of disk for each checkpoint, and as much host memory for the copy "
         "that is written beside training")  # fmt: skip
    if free is not None and size * SPARE > free:
        line("", f"{plan.spell_bytes(free)} of memory are free: training will stand still while it saves")


def show_length(
    settings: Settings, shape: Shape, device: Device, batches: Batches, validation_tokens: int
) -> None:
    """Steps, tokens, operations and time."""
    per_step = settings.batch_size * settings.context
    work = plan.work_of(settings, shape, batches)
    operations = f"{work.mean(settings.steps):,} operations a token"
    took = plan.duration(settings, work, device, validation_tokens)
    if settings.dry_run and settings.time:
        steps = max(1, int(settings.time / took.seconds * settings.steps))
        line("plan", f"{settings.time:,g} s, perhaps {steps:,} steps of {settings.batch_size} x "
             f"{settings.context} tokens (an estimate: a run measures its first steps), {operations}")  # fmt: skip
        show_parts(settings.model_copy(update={"steps": steps}), work)
        return
    line("plan", f"{settings.steps} steps of {settings.batch_size} x {settings.context} tokens: "
                 f"{settings.steps * per_step:,} tokens, "
                 f"{settings.steps / batches.steps_per_epoch:.2f} times through the text, {operations}")  # fmt: skip
    show_parts(settings, work)
    line("time", str(took))


def show_parts(settings: Settings, work: plan.Work) -> None:
    """What of the model, and of its vocabulary, training leaves out, where it does."""
    growth = plan.growth_of(settings)
    if growth.step:
        blocks = f"the first {growth.first} block{'s' * (growth.first != 1)} alone for {growth.step:,} steps"
        line("", f"{blocks}, then all {growth.layers}; the others add nothing until then")
    if settings.sampled_softmax > 1:
        line("", f"the training loss runs over some {work.candidates:,} of {work.shape.vocabulary_size:,} tokens, a batch's own "
             f"and one in {settings.sampled_softmax} of the others; what is held out is measured over all")  # fmt: skip


def show_settings(resolved: Resolved) -> None:
    print("\nsettings, and where each came from")
    for name, value in resolved.settings.model_dump().items():
        shown = " ".join(value) if isinstance(value, tuple) else value
        print(printable(f"  {name:<20}{one_line(str(shown)):<16} {resolved.origins[name]}"))


def write_summary(trainer: Trainer, run: Run, *, trained_here: bool = True) -> None:
    """``trained_here``: whether the last leg was this process's, so that its peak and its speed are the run's."""
    rows, settings = run.metrics, trainer.settings
    if not rows:
        return
    last = rows[-1]
    evaluated = [row for row in rows if row.val_loss is not None]
    lines = [
        f"# {markdown(run.path.name)}",
        "",
        f"{markdown(settings.preset)}, step {last.step} of {settings.steps}",
        "",
        "| | |",
        "|---|---|",
    ]
    table = {"training loss": f"{last.loss:.4f} nats per token"}
    if evaluated:
        loss = evaluated[-1].val_loss or 0.0
        table["validation loss"] = f"{loss:.4f} nats per token, at step {evaluated[-1].step}"
        table["bits per byte"] = f"{bits_per_byte(loss, trainer.tokens):.4f}"
    table["tokens"] = f"{last.tokens:,}"
    table["time"] = (
        f"{last.seconds:.1f} s, {last.tokens / last.seconds:,.0f} tokens/s over all, evaluations included"
    )
    if trained_here and trainer.device.product_rate:
        usual = statistics.median(row.tokens_per_second for row in rows)
        work = work_of(trainer)
        share = statistics.median(share_of_peak(trainer, work, row) for row in rows)
        table["speed"] = (
            f"{usual:,.0f} tokens/s in the median step, {share:.0%} of the "
            f"{trainer.device.product_rate / 1e9:,.0f} GFLOP/s that one matrix product reached before it"
        )
    peak = trainer.device.peak_bytes() if trained_here else None
    table["peak memory"] = plan.spell_bytes(peak) if peak else "not known here"
    if unwell := _unwell(run, rows):
        table["unwell"] = unwell
    table["device"] = f"{trainer.device.name}, {trainer.device.precision}, {trainer.device.threads} threads"
    commands = [one_line(command, 4000) for command in next_commands(run, last.step < settings.steps)]
    fence = "`" * max(3, 1 + max(len(ticks) for command in commands for ticks in re.findall("`*", command)))
    lines += [f"| {name} | {value} |" for name, value in table.items()]
    lines += [
        "",
        "![loss](loss.png)",
        "",
        "Next:",
        "",
        fence,
        *commands,
        fence,
        "",
    ]
    run.write(runs.SUMMARY, "\n".join(lines))


def _unwell(run: Run, rows: list[Row]) -> str:
    """Loss spikes, and steps whose update was skipped or at which the run stopped: how many, and the first few."""
    steps = {"spike": set(health.spike_steps([(row.step, row.loss) for row in rows]))}
    for entry in health.recorded(run.path):
        if entry["kind"] in ("skipped", "stopped"):
            steps.setdefault(entry["kind"], set()).add(entry["step"])
    return "; ".join(
        f"{kind} at {len(found)} step{'s' * (len(found) > 1)}: {', '.join(map(str, sorted(found)[:8]))}"
        + (", ..." if len(found) > 8 else "") for kind, found in steps.items() if found
    )  # fmt: skip


def work_of(trainer: Trainer) -> plan.Work:
    return plan.work_of(trainer.settings, trainer.model.shape, trainer.batches)


def share_of_peak(trainer: Trainer, work: plan.Work, row: Row) -> float:
    """Share of one product's measured rate that a step reached, by a count of its products; 0 where none was measured."""
    rate = trainer.device.product_rate
    return row.tokens_per_second * work.at(row.step - 1) / rate if rate else 0.0


def bits_per_byte(loss: float, tokens: Tokens) -> float:
    """Comparable between tokenizers: nats per token, times tokens per byte, in bits."""
    return loss * (tokens.validation_tokens - 1) / max(1, tokens.validation_bytes) / math.log(2)


def next_commands(run: Run, unfinished: bool) -> list[str]:
    again = [run.command_to_resume()] if unfinished else []
    return [*again, run.command_to_sample()]


def show_end(trainer: Trainer, run: Run) -> None:
    rows = run.metrics
    evaluated = [row.val_loss for row in rows if row.val_loss is not None]
    if trainer.step < trainer.settings.steps:
        line(
            "stopped", f"after step {trainer.step} of {trainer.settings.steps}; a checkpoint is in {run.path}"
        )
    elif evaluated:
        loss = evaluated[-1] or 0.0
        line("done", f"validation loss {loss:.4f} nats per token, {bits_per_byte(loss, trainer.tokens):.3f} bits per byte, "
                     f"in {trainer.seconds:.0f} s of training")  # fmt: skip
        if loss > WORSE * rows[0].loss:
            line("", f"that is worse than at the first step ({rows[0].loss:.4f}): a smaller --learning-rate than "
                     f"{trainer.settings.learning_rate:g} may help")  # fmt: skip
    there = [name for name in (runs.PLOT, runs.SAMPLES, runs.SUMMARY, METRICS) if (run.path / name).exists()]
    line("see", f"{run.path}{os.sep}{{{','.join(there)}}}")
    if trainer.settings.from_trace and trainer.step == trainer.settings.steps:
        line("next", shlex.join(["ambidex", "compare", trainer.settings.from_trace, str(run.path)]))
    for command in next_commands(run, trainer.step < trainer.settings.steps):
        line("next", command)
