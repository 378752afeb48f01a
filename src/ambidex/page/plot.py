"""Line plots as SVG that a page carries inside: no script, colours from the page's style, a title and a description.

Ready-made libraries were looked at: matplotlib's SVG is large, has fixed colours and its text as outlines; pygal's has a
script; both would be needed where a mailed trace is judged with numpy alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ambidex.page.markup import Element, el, short
from ambidex.page.scale import Scale

WIDTH, HEIGHT = 400, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 22, 44
MOST = 240  # points of a line: more than a screen can show
DASHES = ("", "6 3", "2 3", "9 3 2 3", "1 4", "12 4")
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """Points joined, or as dots alone. ``style`` picks colour and dashes, 0 to 5."""

    label: str
    points: Sequence[Point]
    style: int = 0
    dots: bool = False
    joined: bool = True


@dataclass(frozen=True)
class Band:
    """Between a lower and an upper line."""

    label: str
    points: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Note:
    """A word at the top of the plot, over a place on the axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Rule:
    """A level across the plot, with a word at its right end."""

    at: float
    label: str


def figure(name: str, title: str, description: str, x: Scale, y: Scale, *, lines: Sequence[Line] = (),
           bands: Sequence[Band] = (), rules: Sequence[Rule] = (), walls: Sequence[float] = (), notes: Sequence[Note] = (), caption: str = "",
           table: Element | None = None, level: int = 3) -> Element:  # fmt: skip
    """A plot with heading, legend, caption and, folded away, its numbers as a table. ``name`` is unique on the page."""
    plot = el("svg", el("title", title, id=f"{name}-title"), el("desc", description, id=f"{name}-desc"),
              viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", class_="plot",
              aria_labelledby=f"{name}-title {name}-desc")  # fmt: skip
    plot.extend(_axes(x, y))
    for wall in walls if len(walls) <= MOST // 4 else ():
        plot.append(_segment(_x(x, wall), TOP, _x(x, wall), HEIGHT - BOTTOM, "grid"))
    plot.extend(_band(x, y, band) for band in bands if band.points)
    for rule in rules:
        height = _y(y, rule.at)
        plot.append(_segment(LEFT, height, WIDTH - RIGHT, height, "rule"))
        plot.append(_text(WIDTH - RIGHT, height - 3, rule.label, "end"))
    plot.extend(_text(_x(x, note.at), TOP - 8, note.label, "middle") for note in notes[:12])
    for line in lines:
        plot.extend(_line(x, y, line))
    legend = el(
        "ul",
        [_key(line) for line in lines],
        [_band_key(band) for band in bands if band.points],
        class_="legend",
    )
    below = (
        el("figcaption", el("p", caption) if caption else None, table)
        if caption or table is not None
        else None
    )
    return el("figure", el(f"h{level}", title), legend, plot, below)


def _axes(x: Scale, y: Scale) -> list[Element]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    made = []
    for value, label in y.ticks:
        height = _y(y, value)
        made += [_segment(LEFT, height, right, height, "grid"), _text(LEFT - 6, height + 4, label, "end")]
    for value, label in x.ticks:
        place = _x(x, value)
        made += [
            _segment(place, bottom, place, bottom + 4, "axis"),
            _text(place, bottom + 17, short(label, 14), _anchor(place)),
        ]
    made.append(el("path", d=f"M{LEFT} {TOP}V{bottom}H{right}", class_="axis"))
    made.append(_text((LEFT + right) / 2, HEIGHT - 8, x.label, "middle"))
    upright = _text(0, 0, y.label, "middle")
    upright.set("transform", f"translate(11 {(TOP + bottom) / 2:.1f}) rotate(-90)")
    return [*made, upright]


def _anchor(place: float) -> str:
    """A long word at either end stays inside the picture."""
    return "end" if place > WIDTH - RIGHT - 12 else "middle"


def _line(x: Scale, y: Scale, line: Line) -> list[Element]:
    points = [(_x(x, a), _y(y, b)) for a, b in thinned(line.points)]
    style = f"s{line.style % len(DASHES)}"
    made = []
    if line.joined and len(points) > 1:
        made.append(el("path", d="M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in points), class_=f"curve {style}",
                       stroke_dasharray=DASHES[line.style % len(DASHES)] or None))  # fmt: skip
    if line.dots or len(points) == 1:
        made += [_mark(a, b, line.style) for a, b in points]
    return made


def _mark(a: float, b: float, style: int) -> Element:
    """A circle, a square or a triangle, so that colour is not all that tells them apart."""
    name = f"dot s{style % len(DASHES)}"
    if style % 3 == 0:
        return el("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r="2.6", class_=name)
    if style % 3 == 1:
        return el("rect", x=f"{a - 2.5:.1f}", y=f"{b - 2.5:.1f}", width="5", height="5", class_=name)
    return el("path", d=f"M{a - 3.2:.1f} {b + 2.6:.1f}h6.4l-3.2 -5.6z", class_=name)


def _band(x: Scale, y: Scale, band: Band) -> Element:
    points = list(band.points)[:: max(1, len(band.points) // MOST)]
    points += [band.points[-1]] if points[-1] != band.points[-1] else []
    upper = [f"{_x(x, a):.1f} {_y(y, high):.1f}" for a, _, high in points]
    lower = [f"{_x(x, a):.1f} {_y(y, low):.1f}" for a, low, _ in reversed(points)]
    return el("path", d="M" + "L".join(upper + lower) + "Z", class_="band")


def _key(line: Line) -> Element:
    sign = el("svg", viewBox="0 0 28 12", aria_hidden="true", focusable="false")
    if line.joined:
        sign.append(el("path", d="M1 6H27", class_=f"curve s{line.style % len(DASHES)}",
                       stroke_dasharray=DASHES[line.style % len(DASHES)] or None))  # fmt: skip
    if line.dots:
        sign.append(_mark(14, 6, line.style))
    return el("li", sign, el("span", short(line.label, 80)))


def _band_key(band: Band) -> Element:
    sign = el(
        "svg",
        el("path", d="M1 1H27V11H1Z", class_="band"),
        viewBox="0 0 28 12",
        aria_hidden="true",
        focusable="false",
    )
    return el("li", sign, el("span", band.label))


def thinned(points: Sequence[Point], most: int = MOST) -> list[Point]:
    """Finite points in order; of many, the lowest and the highest of each stretch, so that no spike is lost."""
    found = [(a, b) for a, b in points if math.isfinite(a) and not math.isnan(b)]
    if len(found) <= most:
        return found
    size = math.ceil(len(found) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(found), size):
        some = found[start : start + size]
        ends = sorted(
            {min(range(len(some)), key=lambda n: some[n][1]), max(range(len(some)), key=lambda n: some[n][1])}
        )
        kept += [some[n] for n in ends]
    return kept


def _x(scale: Scale, value: float) -> float:
    return LEFT + scale.at(value) * (WIDTH - LEFT - RIGHT)


def _y(scale: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - scale.at(value) * (HEIGHT - TOP - BOTTOM)


def _segment(a: float, b: float, c: float, d: float, name: str) -> Element:
    return el("path", d=f"M{a:.1f} {b:.1f}L{c:.1f} {d:.1f}", class_=name)


def _text(a: float, b: float, words: str, anchor: str) -> Element:
    return el("text", words, x=f"{a:.1f}", y=f"{b:.1f}", text_anchor=anchor, paint_order="stroke")
