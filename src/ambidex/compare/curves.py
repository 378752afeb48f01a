"""The loss curves of a comparison, and the band around them that rounding alone gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ambidex.compare.folder import Folder
from ambidex.compare.tracefile import Leg
from ambidex.page.markup import Element, folded, short, table
from ambidex.page.plot import Band, Line, figure
from ambidex.page.scale import linear, logarithmic
from ambidex.rows import Row

TABLE_STEPS = 12
ROUNDING = "what rounding alone may do"
VISIBLE = 0.004  # of the plot's height: a thinner band is hidden by the line


@dataclass(frozen=True)
class Curve:
    """One leg's training loss by step; steps count updates done, from 1."""

    name: str
    rows: list[Row]

    @property
    def points(self) -> list[tuple[float, float]]:
        return [(row.step, row.loss) for row in self.rows if math.isfinite(row.loss)]


def loss_figures(curves: Sequence[Curve], reference: Folder) -> list[Element]:
    """Both views of the losses; empty where no leg has any."""
    drawn = [(n, curve) for n, curve in enumerate(curves) if curve.points]
    if not drawn:
        return []
    lines = [Line(curve.name, curve.points, n) for n, curve in drawn]
    steps = [step for _, curve in drawn for step, _ in curve.points]
    losses = [loss for _, curve in drawn for _, loss in curve.points]
    band = rounding_band(reference, curves[0].rows)
    around = [Band(ROUNDING, [(s, loss * (1 - b), loss * (1 + b)) for s, loss, b in band])] if band else []
    scale = linear("loss (nats per token)", losses)
    thin = band and max(2 * widest * abs(loss) for _, loss, widest in band) < VISIBLE * (
        scale.high - scale.low
    )
    caption = "Where the lines lie on each other only the last one drawn is seen." + (
        " The band of rounding is thinner than a line here; beside it is what it looks like near by."
        if thin
        else ""
    )
    made = [
        figure("loss", "Training loss", f"Training loss by step of {short(', '.join(c.name for _, c in drawn))}.",
               linear("step", steps), scale, lines=lines, bands=around,
               caption=caption, table=_loss_table([curve for _, curve in drawn]))
    ]  # fmt: skip
    apart = _distances(curves)
    if apart:
        made.append(_distance_figure(apart, band))
    return made


def rounding_band(reference: Folder, rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    """Step, the reference's loss, and how far rounding alone may have moved it by then, relative; never falling.

    From the losses of the reference's own training with other roundings; in a trace without them, from the loss's floor.
    """
    if reference.trace is None:
        return []
    own = {row.step: row.loss for row in rows if math.isfinite(row.loss) and row.loss}
    far: dict[int, float] = {}
    for losses in reference.trace.losses.values():
        for step, loss in enumerate(losses, 1):
            if step in own:
                far[step] = max(far.get(step, 0.0), abs(loss - own[step]) / abs(own[step]))
    free = reference.trace.legs.get(Leg("free", 0, reference.trace.precision))
    if free is not None:
        for number, key in enumerate(free.keys):
            floor = float(free.floor[number])
            if key.kind == "loss" and key.step + 1 in own and floor < 1:
                far[key.step + 1] = max(far.get(key.step + 1, 0.0), floor)
    band, widest = [], 2.0**-24
    for step in sorted(far):
        widest = max(widest, far[step])
        band.append((float(step), own[step], widest))
    return band


class Apart(NamedTuple):
    """How far one leg's losses are from the first leg's, relative, by step."""

    number: int
    name: str
    distance: dict[float, float]


def _distances(curves: Sequence[Curve]) -> list[Apart]:
    own = dict(curves[0].points)
    found = [
        Apart(number, curve.name, {s: abs(loss - own[s]) / abs(own[s]) for s, loss in curve.points if own.get(s)})
        for number, curve in enumerate(curves[1:], 1)
    ]  # fmt: skip
    return [one for one in found if one.distance]


def _distance_figure(apart: Sequence[Apart], band: Sequence[tuple[float, float, float]]) -> Element:
    """The legs' distances as marks, since an equal loss between two others is no line, and the band below them."""
    lines = [Line(one.name, list(one.distance.items()), one.number, dots=True, joined=False) for one in apart]
    steps = sorted({step for one in apart for step in one.distance})
    within = {step: widest for step, _, widest in band}
    values = [d for one in apart for d in one.distance.values() if d > 0] + list(within.values())
    scale = logarithmic("relative distance", values)
    around = [Band(ROUNDING, [(step, scale.low, widest) for step, widest in within.items()])] if band else []
    rows = [[f"{step:.0f}", *(f"{one.distance[step]:.2e}" if step in one.distance else "" for one in apart),
             f"{within[step]:.2e}" if step in within else "not measured"] for step in _some(steps)]  # fmt: skip
    numbers = table("Distance of the training loss from the reference's, relative",
                    ["step", *(one.name for one in apart), "rounding alone"], rows, numbers=range(1, len(apart) + 2))  # fmt: skip
    return figure(
        "distance", "Distance from the reference's loss",
        "Relative distance of each run's training loss from the reference's, by step, and the band of rounding.",
        linear("step", steps), scale, lines=lines, bands=around, caption=_distance_words(apart, band, steps[-1]),
        table=folded("The same as a table", numbers),
    )  # fmt: skip


def _distance_words(apart: Sequence[Apart], band: Sequence[tuple[float, float, float]], last: float) -> str:
    equal = [one.name for one in apart if not any(one.distance.values())]
    words = [f"Equal in every digit at every step: {short(', '.join(equal))}."] if equal else []
    if not equal and any(0.0 in one.distance.values() for one in apart):
        words.append("Marks at the foot: equal in every digit.")
    if band:
        words.append(
            "The band is the reference trained again with other roundings: the largest distance seen by then."
        )
        if band[-1][0] < last:
            words.append(f"It was measured for {band[-1][0]:.0f} steps; --trace-band N measures it for N.")
    else:
        words.append("No band: the reference was trained without --trace.")
    return " ".join(words)


def _loss_table(curves: Sequence[Curve]) -> Element:
    by_step = [dict(curve.points) for curve in curves]
    rows = [[f"{step:.0f}", *(f"{losses[step]:.6f}" if step in losses else "" for losses in by_step)]
            for step in _some(sorted({step for losses in by_step for step in losses}))]  # fmt: skip
    made = table(
        "Training loss, nats per token",
        ["step", *(curve.name for curve in curves)],
        rows,
        numbers=range(1, len(curves) + 1),
    )
    return folded("The same as a table", made)


def _some(steps: Sequence[float]) -> list[float]:
    """A dozen of many, the first and the last among them."""
    if len(steps) <= TABLE_STEPS:
        return list(steps)
    places = np.linspace(0, len(steps) - 1, TABLE_STEPS).round().astype(int)
    return [steps[n] for n in places]
