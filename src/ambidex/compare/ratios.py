"""Error over floor as plots: by depth, in the step where two runs part or over all, and by step."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Sequence
from typing import NamedTuple

from ambidex.compare.align import DIFFERENT, EXACT, TOO_HIGH, View
from ambidex.compare.judge import Verdict
from ambidex.compare.naming import module_of
from ambidex.compare.stages import Finding
from ambidex.page.markup import Element, folded, short, table
from ambidex.page.plot import Line, Note, Rule, figure
from ambidex.page.scale import Scale, categories, logarithmic

GROUPS = ("forward", "backward", "optimizer")
FORWARD = frozenset({"weight", "tokens", "targets", "input", "output", "loss"})
FLOWING = frozenset({"output_gradient", "input_gradient", "own_gradient"})
BACKWARD = FLOWING | {"gradient"}
NOWHERE = frozenset({"loss", "gradient", "batch", "model", ""})  # names of what belongs to no module
TABLE_ROWS = 120
LEAST_RATIO = 0.01  # equal bits have the ratio 0, and are drawn at the foot


class Cell(NamedTuple):
    """The largest error over floor among some tensors, and which tensor it was."""

    ratio: float
    error: float
    floor: float
    tensor: str


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
    is_module = key.kind in FORWARD - {"weight"} or key.kind in FLOWING
    return module_of(key.name) if is_module else key.name.rpartition(".")[0]


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
    """Modules as the forward comes through them; those that a fused kernel never called stand before what encloses them."""
    called: dict[str, None] = {}
    owners: dict[str, None] = {}  # of parameters
    for view in found:
        for number, key in enumerate(view.keys):
            if key.kind in ("output", "input"):
                called.setdefault(key.name)
            elif key.kind in ("weight", "gradient", "update"):
                owners.setdefault(_module(view, number))
    waiting: dict[str, list[str]] = {}
    for module in owners:
        if module not in called and module not in NOWHERE:
            waiting.setdefault(_enclosing(module, called), []).append(module)
    return [
        one for module in (*called, "") for one in (*waiting.get(module, ()), module) if one not in NOWHERE
    ]


def _enclosing(module: str, called: Container[str]) -> str:
    """The innermost module around this one that was called, or nothing."""
    while module and module not in called:
        module = module.rpartition(".")[0]
    return module


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
            for m in modules[:TABLE_ROWS]]  # fmt: skip
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
    order = short(", ".join(dict.fromkeys(_spelled(part) for part in parts)), 800)
    caption = f"The worst tensor of each step. From left to right: {order}."
    numbers = table(
        "Error over floor by step",
        ["recording", *GROUPS, "worst tensor"],
        rows[:TABLE_ROWS],
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
