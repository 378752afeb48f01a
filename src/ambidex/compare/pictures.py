"""The plots of a comparison: loss curves with the band of rounding, and error over floor by depth and by step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ambidex.compare.align import DIFFERENT, EXACT, TOO_HIGH, View
from ambidex.compare.folder import Folder
from ambidex.compare.judge import Finding, Verdict
from ambidex.compare.tracefile import Leg
from ambidex.page.markup import Element, folded, short, table
from ambidex.page.plot import Band, Line, Note, Rule, figure
from ambidex.page.scale import Scale, categories, linear, logarithmic
from ambidex.rows import Row

GROUPS = ("forward", "backward", "optimizer")
FORWARD = frozenset({"weight", "tokens", "targets", "input", "output", "loss"})
BACKWARD = frozenset({"output_gradient", "input_gradient", "gradient"})
NOWHERE = frozenset({"loss", "gradient", "batch", "model", ""})  # names of what belongs to no module
TABLE_STEPS = 12
TABLE_MODULES = 120
LEAST_RATIO = 0.01  # equal bits have the ratio 0, and are drawn at the foot


class Cell(NamedTuple):
    """The largest error over floor among some tensors, and which tensor it was."""

    ratio: float
    error: float
    floor: float
    tensor: str


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
    around = (
        [Band("what rounding alone may do", [(s, loss * (1 - b), loss * (1 + b)) for s, loss, b in band])]
        if band
        else []
    )
    made = [
        figure("loss", "Training loss", f"Training loss by step of {short(', '.join(c.name for _, c in drawn))}.",
               linear("step", steps), linear("loss (nats per token)", losses), lines=lines, bands=around,
               caption="Where the lines lie on each other only the last one drawn is seen.",
               table=_loss_table([curve for _, curve in drawn]))
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


def _distances(curves: Sequence[Curve]) -> list[tuple[int, str, list[tuple[float, float]]]]:
    """For each leg after the first: its loss's relative distance from the first's, by step."""
    own = dict(curves[0].points)
    found = []
    for number, curve in enumerate(curves[1:], 1):
        points = [(s, abs(loss - own[s]) / abs(own[s])) for s, loss in curve.points if own.get(s)]
        if points:
            found.append((number, curve.name, points))
    return found


def _distance_figure(apart: Sequence[tuple[int, str, list[tuple[float, float]]]],
                     band: Sequence[tuple[float, float, float]]) -> Element:  # fmt: skip
    lines = [Line(name, [(s, d) for s, d in points if d > 0], n) for n, name, points in apart]
    values = [d for _, _, points in apart for _, d in points if d > 0] + [b for *_, b in band]
    equal = [name for _, name, points in apart if not any(d for _, d in points)]
    words = f"Equal in every digit: {short(', '.join(equal))}. " if equal else ""
    caption = words + (
        f"The band is the reference trained again with other roundings, over its first {band[-1][0]:.0f} steps: the largest "
        "distance seen by then. Beyond them nothing was measured (--trace-band asks for more)."
        if band else "No band: the reference was trained without --trace, or with --trace-band 0."
    )  # fmt: skip
    scale = logarithmic("relative distance", values)
    steps = [s for _, _, points in apart for s, _ in points]
    around = [Band("what rounding alone may do", [(s, scale.low, b) for s, _, b in band])] if band else []
    within = {step: widest for step, _, widest in band}
    rows = [[f"{s:.0f}", *(f"{dict(points).get(s, math.nan):.2e}" for *_, points in apart),
             f"{within[s]:.2e}" if s in within else "not measured"]
            for s in _some(sorted({s for _, _, points in apart for s, _ in points}))]  # fmt: skip
    numbers = table("Distance of the training loss from the reference's, relative", ["step", *(name for _, name, _ in apart), "rounding alone"],
                    rows, numbers=range(1, len(apart) + 2))  # fmt: skip
    return figure("distance", "Distance from the reference's loss", "Relative distance of each run's training loss from the reference's, by step, and the band of rounding.",
                  linear("step", steps), scale, lines=lines, bands=around, caption=caption, table=folded("The same as a table", numbers))  # fmt: skip


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


def ratio_figures(verdict: Verdict, found: Sequence[View], name: str) -> list[Element]:
    """Error over floor by depth, in the step where the runs part or over all, and by step."""
    by_depth = _by_depth(found, verdict.first)
    by_step = _by_step(found)
    made = []
    if by_depth:
        made.append(_depth_figure(by_depth, verdict.first, f"{name}-depth"))
    if by_step:
        made.append(_step_figure(by_step, f"{name}-step"))
    return made


def _group(kind: str) -> str:
    return "forward" if kind in FORWARD else "backward" if kind in BACKWARD else "optimizer"


def _judged(view: View) -> list[int]:
    """What a floor was measured for, and what differs where bits are asked."""
    return [
        n
        for n, key in enumerate(view.keys)
        if view.dirty(n) or (key.kind not in EXACT and view.floor[n] <= TOO_HIGH)
    ]


def _module(view: View, number: int) -> str:
    key = view.keys[number]
    is_module = key.kind in FORWARD - {"weight"} or key.kind in ("output_gradient", "input_gradient")
    return key.name if is_module else key.name.rpartition(".")[0]


def _by_depth(found: Sequence[View], first: Finding | None) -> dict[str, dict[str, Cell]]:
    """Module, in the order of depth, and group -> its worst tensor."""
    cells: dict[str, dict[str, Cell]] = {}
    for view in found:
        for number in _judged(view):
            module = _module(view, number)
            if module in NOWHERE or (
                first and (view.keys[number].step, view.leg.mode) != (first.step, first.mode)
            ):
                continue
            _raise(cells.setdefault(module, {}), _group(view.keys[number].kind), view, number)
    ordered = depth_order(found)
    return {module: cells[module] for module in ordered if module in cells}


def depth_order(found: Sequence[View]) -> list[str]:
    """Modules as the forward comes through them; one that holds others after the last of them."""
    parameters: dict[str, int] = {}
    called: dict[str, int] = {}
    for view in found:
        for number, key in enumerate(view.keys):
            module = _module(view, number)
            if key.kind in ("output", "input"):
                called.setdefault(module, len(called))
            elif key.kind in ("weight", "gradient", "update") and module not in NOWHERE:
                parameters.setdefault(module, len(parameters))
    places: dict[str, tuple[float, int]] = {}
    last = -1.0
    for module in called:
        inside = [n for name, n in parameters.items() if f"{name}.".startswith(f"{module}.")]
        last = float(max(inside)) if inside else last
        places[module] = (last, -len(module))
    for module, n in parameters.items():
        places.setdefault(module, (float(n), -len(module)))
    return sorted(places, key=lambda module: places[module])


def _raise(cells: dict[str, Cell], group: str, view: View, number: int) -> None:
    key = view.keys[number]
    # Where bits are asked there is no floor; whatever differs there is drawn at the top.
    ratio = float(view.ratio[number]) if view.ratio[number] > 0 or not view.dirty(number) else math.inf
    if group not in cells or ratio > cells[group].ratio:
        tensor = f"{key.kind.replace('_', ' ')} of {key.name}, step {key.step}, {view.leg.mode}"
        cells[group] = Cell(ratio, float(view.error[number]), float(view.floor[number]), tensor)


def _by_step(found: Sequence[View]) -> dict[str, dict[str, Cell]]:
    """ "free 0", "from 8: 9" and so on -> group -> its worst tensor."""
    cells: dict[str, dict[str, Cell]] = {}
    for view in sorted(
        found, key=lambda v: (("fed", "state", "free").index(v.leg.mode), v.leg.start, v.leg.precision)
    ):
        for number in _judged(view):
            place = {"fed": "fed", "state": f"from {view.leg.start}", "free": "free"}[view.leg.mode]
            name = f"{place} {view.leg.precision}"
            _raise(
                cells.setdefault(f"{name}|{view.keys[number].step}", {}),
                _group(view.keys[number].kind),
                view,
                number,
            )
    return cells


def _ratio_scale(cells: dict[str, dict[str, Cell]]) -> Scale:
    values = [
        cell.ratio for some in cells.values() for cell in some.values() if LEAST_RATIO < cell.ratio < math.inf
    ]
    return logarithmic("error / floor", values, at_least=(0.1, 10.0))


def _depth_figure(cells: dict[str, dict[str, Cell]], first: Finding | None, name: str) -> Element:
    modules = list(cells)
    scale = _ratio_scale(cells)
    lines = [Line(group, [(float(n), cells[m][group].ratio) for n, m in enumerate(modules) if group in cells[m]], style, dots=True, joined=False)
             for style, group in enumerate(GROUPS)]  # fmt: skip
    names, walls = _block_ticks(modules)
    where = (
        f"in step {first.step}, {first.mode} mode, where the runs part"
        if first
        else "the largest over all steps that were judged"
    )
    x = categories("depth: from the input to the output", modules)
    x = type(x)(x.label, x.low, x.high, tuple(names))
    rows = [[m, *(f"{cells[m][g].ratio:.2g}" if g in cells[m] else "" for g in GROUPS), max(cells[m].values()).tensor]
            for m in modules[:TABLE_MODULES]]  # fmt: skip
    caption = f"Each mark is a module's worst tensor, {where}. Equal bits lie at the foot."
    numbers = table(
        f"Error over floor by module, {where}", ["module", *GROUPS, "worst tensor"], rows, numbers=(1, 2, 3)
    )
    return figure(name, "Error over floor by depth", f"Error over floor of {len(modules)} modules in the order of depth, {where}.", x, scale,
                  lines=[line for line in lines if line.points], rules=_limits(), walls=walls, caption=caption,
                  table=folded("The same as a table", numbers), level=3)  # fmt: skip


def _limits() -> list[Rule]:
    return [Rule(DIFFERENT, f"above {DIFFERENT:g}: different")]


def _block_ticks(modules: Sequence[str]) -> tuple[list[tuple[float, str]], list[float]]:
    """A tick in the middle of each block, with its number, and a wall between blocks."""
    labels = [_block(module) for module in modules]
    starts = [n for n in range(len(labels)) if n == 0 or labels[n] != labels[n - 1]]
    ends = [*starts[1:], len(labels)]
    middles = [((a + b - 1) / 2, labels[a]) for a, b in zip(starts, ends)]
    every = max(1, math.ceil(len(middles) / 9))
    return middles[::every], [a - 0.5 for a in starts[1:]]


def _block(module: str) -> str:
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", module)
    return (
        found[1] if found else module.rpartition(".")[2].removesuffix("_tokens").removeprefix("lm_") or module
    )


def _step_figure(cells: dict[str, dict[str, Cell]], name: str) -> Element:
    places = list(cells)
    steps = [place.partition("|")[2] for place in places]
    parts = [place.partition("|")[0] for place in places]
    scale = _ratio_scale(cells)
    lines = [Line(group, [(float(n), cells[p][group].ratio) for n, p in enumerate(places) if group in cells[p]], style, dots=True, joined=False)
             for style, group in enumerate(GROUPS)]  # fmt: skip
    walls = [n - 0.5 for n in range(1, len(parts)) if parts[n] != parts[n - 1]]
    rows = [[f"{part}, step {step}", *(f"{cells[p][g].ratio:.2g}" if g in cells[p] else "" for g in GROUPS), max(cells[p].values()).tensor]
            for p, part, step in zip(places, parts, steps)]  # fmt: skip
    middles = [Note((min(some) + max(some)) / 2, part.rpartition(" ")[0]) for part in dict.fromkeys(parts)
               if len(some := [n for n, other in enumerate(parts) if other == part]) > 1 or len(places) < 9]  # fmt: skip
    order = ", ".join(dict.fromkeys(_spelled(part) for part in parts))
    caption = f"The worst tensor of each step. From left to right: {order}."
    numbers = table(
        "Error over floor by step",
        ["recording", *GROUPS, "worst tensor"],
        rows[:TABLE_MODULES],
        numbers=(1, 2, 3),
    )
    return figure(name, "Error over floor by step", f"The largest error over floor at each recorded step: {order}.",
                  categories("step", steps, most=18), scale, lines=[line for line in lines if line.points], rules=_limits(), walls=walls,
                  notes=middles, caption=caption, table=folded("The same as a table", numbers), level=3)  # fmt: skip


def _spelled(part: str) -> str:
    place, _, precision = part.rpartition(" ")
    if place.startswith("from "):
        return f"two steps from the state at step {place.removeprefix('from ')} ({precision})"
    return (
        f"{'fed with the tensors of the reference' if place == 'fed' else 'as the runs went'} ({precision})"
    )
