"""`ambidex report RUN`: one HTML page for a run, made of what lies in its folder, whole or broken. Needs no torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ambidex
from ambidex.errors import Exit, Problems
from ambidex.escaping import printable, typed
from ambidex.glance import Glance, Saved, glance, read_samples, saved, whole
from ambidex.page.markup import (
    Child,
    Element,
    document,
    el,
    folded,
    preformatted,
    section,
    short,
    table,
    write,
)
from ambidex.page.plot import Line, figure
from ambidex.page.scale import linear
from ambidex.repeat import MADE_BY, command
from ambidex.rows import METRICS, Row, read_metrics

REPORT = "report.html"
LONGEST_SAMPLE = 4000  # characters
MOST_SAMPLES = 12
MOST_SETTINGS = 200
TABLE_STEPS = 12


def report(run: Path, file: Path | None) -> int:
    """Write the page of ``run`` to ``file``, or into the run. Raises Problems: 3 where there is no run, 4 not written."""
    found = glance(run)
    if found.broken:
        from ambidex.cardfile import read_card

        read_card(run)  # raises with the reason
        raise Problems([], Exit.DATA)
    target = file or run / REPORT
    write(target, page(found))
    print(f"written  {printable(str(target))}")
    return Exit.DONE


def page(found: Glance) -> str:
    card, rows = found.card, [row for row in read_metrics(found.path / METRICS) if math.isfinite(row.loss)]
    name = short(found.path.resolve().name, 100)
    parts = [_summary(found, rows), _curves(rows), _speed(card, rows), _samples(found.path), _checkpoints(found),
             _machine(card), _settings(card), _repeat(found)]  # fmt: skip
    header = [el("p", "ambidex report: one run", class_="kicker"), el("h1", name), el("p", _sentence(found))]
    return document(f"{name}: a run of ambidex", header, parts,
                    f"Written by ambidex {ambidex.__version__}. This file needs nothing else: no network and no script.")  # fmt: skip


def _sentence(found: Glance) -> str:
    """What the run is and where it stands, in one sentence."""
    config, parameters = found.card["config"], whole(found.card.get("parameters"))
    size = f" of {parameters:,} parameters" if parameters else ""
    steps = f"{found.step:,} of {found.steps:,} steps" if found.steps is not None else f"{found.step:,} steps"
    states = {"training": "is being trained now", "finished": "is finished", "stopped": "has stopped before its end",
              "not begun": "has not begun"}  # fmt: skip
    return f"A training of a {short(config.get('preset') or 'transformer', 40)} model{size}: it {states[found.state]}, with {steps} done."


def _summary(found: Glance, rows: Sequence[Row]) -> Element:
    card = found.card
    facts = [
        ("device", short(_at(card, "device", "name"))), ("why", short(_at(card, "device", "reason"), 600)),
        ("numbers", f"{short(card.get('precision'), 20)}, threads: {short(card.get('threads'), 20)}"),
        ("text", _text(card.get("data"))), ("started", short(card.get("started"), 60)),
    ]  # fmt: skip
    evaluated = [
        (row.step, row.val_loss) for row in rows if row.val_loss is not None and math.isfinite(row.val_loss)
    ]
    if evaluated:
        best = min(evaluated, key=lambda pair: pair[1])
        facts.append(
            (
                "validation loss",
                f"{evaluated[-1][1]:.4f} nats per token at step {evaluated[-1][0]:,}; lowest {best[1]:.4f} at step {best[0]:,}",
            )
        )
    if rows:
        facts += [("training loss", f"{rows[-1].loss:.4f} nats per token at step {rows[-1].step:,}"),
                  ("tokens", f"{rows[-1].tokens:,} in {rows[-1].seconds:,.1f} s of training")]  # fmt: skip
    resumes = card.get("resumes")
    if isinstance(resumes, list) and resumes:
        words = "; ".join(
            f"from step {short(_at(one, 'from_step'), 20)} on {short(_at(one, 'device', 'name'), 40)}"
            for one in resumes[:20]
        )
        facts.append(("continued", words))
    return section("What it was", _facts(facts), name="summary")


def _facts(facts: Sequence[tuple[str, str]]) -> Element:
    return el("dl", [part for term, words in facts for part in (el("dt", term), el("dd", words))])


def _text(data: object) -> str:
    if not isinstance(data, Mapping):
        return "not recorded"
    counts = [(whole(data.get(key)), words) for key, words in (("documents", "documents"), ("bytes", "bytes"), ("train_tokens", "tokens to learn from"),
                                                               ("validation_tokens", "held out"))]  # fmt: skip
    said = ", ".join(f"{count:,} {words}" for count, words in counts if count is not None)
    return f"{said}; sha256 {short(data.get('hash'), 64)}"


def _curves(rows: Sequence[Row]) -> Element:
    if not rows:
        return section("Loss", el("p", f"No step is written down in {METRICS} yet."), name="losses")
    evaluated = [row for row in rows if row.val_loss is not None and math.isfinite(row.val_loss)]
    both = [row.loss for row in rows] + [row.val_loss for row in evaluated if row.val_loss is not None]
    figures = []
    for name, label, place in (
        ("tokens", "tokens", lambda row: float(row.tokens)),
        ("seconds", "seconds of training", lambda row: row.seconds),
    ):
        lines = [Line("training", [(place(row), row.loss) for row in rows], 0)]
        if evaluated:
            lines.append(
                Line("validation", [(place(row), row.val_loss or 0.0) for row in evaluated], 1, dots=True)
            )
        figures.append(figure(f"loss-{name}", f"Loss over {name}", f"Training and validation loss over {label}.",
                              linear(label, [place(row) for row in rows], from_zero=True), linear("loss (nats per token)", both),
                              lines=lines))  # fmt: skip
    chosen = evaluated[-TABLE_STEPS:] or [
        rows[n] for n in sorted({*range(0, len(rows), max(1, len(rows) // TABLE_STEPS)), len(rows) - 1})
    ]
    cells = [[f"{row.step:,}", f"{row.tokens:,}", f"{row.seconds:,.1f}", f"{row.loss:.4f}", f"{row.val_loss:.4f}" if row.val_loss is not None else ""]
             for row in chosen]  # fmt: skip
    numbers = table(
        "Loss by step, nats per token",
        ["step", "tokens", "seconds", "training", "validation"],
        cells,
        numbers=range(5),
    )
    return section(
        "Loss", el("div", figures, class_="pair"), folded("The same as a table", numbers), name="losses"
    )


def _speed(card: Mapping[str, Any], rows: Sequence[Row]) -> Element:
    peak = whole(_at(card, "measured", "peak_bytes"))
    rate = _at(card, "measured", "product_rate")
    facts = [
        (
            "peak memory",
            f"{peak / 1e6:,.0f} MB of this process"
            if peak
            else "not recorded: the run has not ended, or nobody says",
        )
    ]
    if isinstance(rate, int | float) and math.isfinite(rate) and rate > 0:
        facts.append(("one matrix product", f"reached {rate / 1e9:,.0f} GFLOP/s before the training began"))
    if len(rows) < 2:
        return section("Speed and memory", _facts(facts), name="speed")
    speeds = [row.tokens_per_second for row in rows[1:] if math.isfinite(row.tokens_per_second)] or [0.0]
    facts = [("tokens per second", f"{statistics.median(speeds):,.0f} in the median step"), *facts]
    if rows[-1].seconds > 0:
        facts.insert(
            1,
            (
                "over all",
                f"{rows[-1].tokens / rows[-1].seconds:,.0f} tokens per second, evaluations included",
            ),
        )
    drawn = figure("speed-steps", "Speed by step", "Tokens per second of each step.", linear("step", [row.step for row in rows[1:]]),
                   linear("tokens per second", speeds, from_zero=True), lines=[Line("tokens per second", [(row.step, row.tokens_per_second) for row in rows[1:]])])  # fmt: skip
    return section("Speed and memory", el("div", _facts(facts), drawn, class_="pair"), name="speed")


def _samples(path: Path) -> Element:
    """What the model wrote as it learnt: the last one open, the earlier ones folded away."""
    found = read_samples(path / "samples.md")
    if not found:
        return section("Samples", el("p", "No sample has been written."), name="samples")
    made: list[Child] = []
    for title, text in found[-MOST_SAMPLES:]:
        sample = preformatted(text[:LONGEST_SAMPLE], f"Sample: {title}")
        sample.set("class", "sample")
        made.append(
            folded(title, sample) if (title, text) != found[-1] else el("div", el("h3", title), sample)
        )
    return section("Samples", made, name="samples")


def _checkpoints(found: Glance) -> Element:
    kept = saved(found.path / "checkpoints")
    if not kept:
        return section("Checkpoints", el("p", "There is none."), name="checkpoints")
    rows: list[list[Child]] = [
        [
            f"step {one.step:,}",
            f"{one.size / 1e6:,.1f} MB",
            _in_two(_when(one)),
            one.wrong or "as its manifest says",
        ]
        for one in kept[-20:]
    ]
    made = table(
        "Checkpoints, oldest first", ["checkpoint", "size", "written", "names and sizes"], rows, numbers=(1,)
    )
    return section(
        "Checkpoints",
        made,
        el("p", "Every byte is verified when one is loaded.", class_="soft"),
        name="checkpoints",
    )


def _when(one: Saved) -> str:
    try:
        return (
            datetime.fromtimestamp(one.written, UTC).strftime("%Y-%m-%d %H:%M UTC")
            if one.written
            else "not known"
        )
    except (ValueError, OverflowError, OSError):
        return "not known"


def _in_two(when: str) -> Element:
    """A date and a time, between which a narrow window may end the line, and nowhere else."""
    date, _, hour = when.partition(" ")
    return el("span", el("span", date, class_="whole"), " ", el("span", hour, class_="whole"))


def _machine(card: Mapping[str, Any]) -> Element:
    rows: list[list[Child]] = []
    for key in ("build", "versions", "cpu", "numerics"):
        part = card.get(key)
        if isinstance(part, Mapping):
            rows += [[f"{key}.{short(name, 60)}", short(value)] for name, value in list(part.items())[:40]]
    rows += [
        [key, short(card.get(key))]
        for key in ("between_products", "system", "ambidex", "weights_sha256")
        if key in card
    ]
    if not rows:
        return section("Machine and versions", el("p", "The card does not say."), name="machine")
    return section(
        "Machine and versions",
        folded("What else can change its numbers", table("From card.json", ["what", "value"], rows)),
        name="machine",
    )


def _settings(card: Mapping[str, Any]) -> Element:
    origins = card.get("origins")
    origins = origins if isinstance(origins, Mapping) else {}
    rows = [
        [short(name, 60), short(value), short(origins.get(name, "not recorded"), 120)]
        for name, value in list(card["config"].items())[:MOST_SETTINGS]
    ]
    given = [row for row in rows if row[2].split(" ")[0] not in (*MADE_BY, "not")]
    parts: list[Child] = []
    if given:
        parts.append(table("What was asked for", ["setting", "value", "where it came from"], given))
    parts.append(
        folded(
            f"All {len(rows)} settings",
            table("Every setting", ["setting", "value", "where it came from"], rows),
        )
    )
    return section("Settings", *parts, name="settings")


def _repeat(found: Glance) -> Element:
    run = typed([str(found.path)])
    parts: list[Child] = [preformatted(command(found.card), "command that repeats the run")]
    parts.append(
        el(
            "p",
            "The same text, torch build, device, instruction set and number of threads give the same bits; the data's sha256 above tells whether the text is the same.",
        )
    )
    unfinished = found.state in ("stopped", "not begun")
    lines = ([f"ambidex train --resume --out {run}"] if unfinished else []) + [
        f"ambidex sample {run} --tokens 400"
    ]
    return section(
        "How to repeat it",
        *parts,
        el("p", "And what to do with it:"),
        preformatted("\n".join(lines), "commands that go on"),
        name="repeat",
    )


def _at(card: object, *keys: str) -> Any:
    for key in keys:
        card = card.get(key) if isinstance(card, Mapping) else None
    return card
