"""Any numbers give a picture that stays inside its frame, with a title, a description, and no spike lost."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from reading import elements, is_harmless, name

from ambidex.page.markup import document
from ambidex.page.plot import HEIGHT, WIDTH, Band, Line, Rule, figure, thinned
from ambidex.page.scale import categories, linear, logarithmic

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)
POINTS = st.lists(st.tuples(NUMBERS, NUMBERS), max_size=40)


@settings(deadline=None)  # a page is parsed strictly, and the machine may be busy
@given(POINTS, st.booleans(), st.booleans())
def test_whatever_the_numbers_everything_is_drawn_inside_the_frame(
    points: list[tuple[float, float]], log: bool, joined: bool
) -> None:
    x, values = linear("x", [a for a, _ in points]), [b for _, b in points]
    y = logarithmic("y", values) if log else linear("y", values, from_zero=joined)
    drawn = figure("one", "title", "what it shows", x, y, lines=[Line("a", points, 1, dots=True, joined=joined)],
                   bands=[Band("band", [(a, b, b) for a, b in points])], rules=[Rule(6.0, "six")])  # fmt: skip
    text = document("t", [], [drawn], "")
    assert not re.search(r'="[^"]*\b(nan|inf)\b', text)
    found = is_harmless(text)
    for element in elements(found):
        if name(element) == "path" and element.get("class", "").startswith(("curve", "band", "axis", "grid")):
            for place in re.findall(r"-?[\d.]+", element.get("d", "")):
                assert -1 <= float(place) <= WIDTH + 1


@settings(deadline=None)  # a page is parsed strictly, and the machine may be busy
@given(NUMBERS, st.lists(NUMBERS, min_size=1))
def test_ticks_are_few_and_in_order(first: float, values: list[float]) -> None:
    for scale in (linear("x", [first, *values]), logarithmic("x", [first, *values])):
        ticks = [tick for tick, _ in scale.ticks]
        assert 1 < len(ticks) <= 20
        assert ticks == sorted(ticks)
        assert scale.low < scale.high
        assert all(-1e-9 <= scale.at(tick) <= 1 + 1e-9 for tick in ticks)


def test_ticks_are_what_a_person_would_choose() -> None:
    assert [label for _, label in linear("x", [0, 5120], from_zero=True).ticks] == ["0", "2k", "4k", "6k"]
    assert [label for _, label in linear("x", [3.4, 5.6]).ticks] == ["3.5", "4", "4.5", "5", "5.5"]
    assert [label for _, label in logarithmic("x", [0.2, 90]).ticks] == ["0.1", "1", "10", "100"]
    assert len(categories("x", [str(n) for n in range(100)]).ticks) <= 14


def test_of_many_points_no_spike_is_lost() -> None:
    points = [(float(n), 0.0) for n in range(10_000)]
    points[1234] = (1234.0, 9.0)
    points[7777] = (7777.0, -9.0)
    kept = thinned(points)
    assert len(kept) <= 400
    assert {points[1234], points[7777]} <= set(kept)
    assert kept == sorted(kept)


def test_a_picture_says_what_it_shows() -> None:
    x = linear("x", [0, 1])
    drawn = figure("one", "title", "what it shows", x, x, lines=[Line("a", [(0, 0), (1, 1)])])
    svg = next(e for e in drawn.iter() if e.tag == "svg" and e.get("role") == "img")
    said = {e.get("id"): e.text for e in svg}
    assert [said[one] for one in svg.get("aria-labelledby", "").split()] == ["title", "what it shows"]
    assert svg.get("viewBox") == f"0 0 {WIDTH} {HEIGHT}"
