"""A fingerprint is the same however its tensor comes in parts, and tells tensors apart by about their distance."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambidex.compare import fingerprint as room
from ambidex.compare.fingerprint import PIECE, Sketch, errors, factors, fingerprint


def numbers(count: int, seed: int = 0) -> np.ndarray:
    return np.random.Generator(np.random.Philox(seed)).standard_normal(count)


def apart(a: np.ndarray, b: np.ndarray) -> float:
    one, other = fingerprint(a), fingerprint(b)
    return float(errors(one.sums[None], other.sums[None], np.array([one.norm]))[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 3000), st.lists(st.integers(0, 3000), max_size=6), st.randoms(use_true_random=False))
def test_any_split_in_any_order_gives_the_same_fingerprint(
    count: int, cuts: list[int], order: object
) -> None:
    values = numbers(count)
    places = sorted({0, count, *(cut for cut in cuts if cut < count)})
    parts = list(itertools.pairwise(places))
    order.shuffle(parts)  # type: ignore[attr-defined]
    sketch = Sketch()
    for first, last in parts:
        sketch.add(values[first:last], first)
    whole, together = fingerprint(values), sketch.fingerprint()
    assert together.elements == whole.elements == count
    assert np.allclose(together.sums, whole.sums, rtol=0, atol=1e-12 * count)
    assert together.norm == pytest.approx(whole.norm, rel=1e-12)


def test_a_split_across_the_border_of_a_piece_is_no_border() -> None:
    values = numbers(PIECE + 10)
    sketch = Sketch()
    sketch.add(values[PIECE - 3 :], PIECE - 3)
    sketch.add(values[: PIECE - 3], 0)
    assert np.allclose(sketch.fingerprint().sums, fingerprint(values).sums, atol=1e-9)


@pytest.mark.parametrize("size", [1e-7, 1e-4, 0.1])
def test_the_estimated_difference_is_within_a_third_of_the_true_one(size: float) -> None:
    for seed in range(40):
        values = numbers(5000, seed)
        other = values + size * numbers(5000, seed + 1000)
        true = np.linalg.norm(other - values) / np.linalg.norm(values)
        assert true * 0.67 < apart(values, other) < true * 1.5


@pytest.mark.parametrize("change", [lambda x: -x, lambda x: x[::-1].copy(), lambda x: np.roll(x, 1), np.sort])
def test_what_a_norm_does_not_see_a_fingerprint_does(change: object) -> None:
    values = numbers(4096)
    assert np.linalg.norm(change(values)) == pytest.approx(np.linalg.norm(values))  # type: ignore[operator]
    assert apart(values, change(values)) > 0.5  # type: ignore[operator]


def test_one_changed_element_is_seen_exactly() -> None:
    values = numbers(100_000)
    other = values.copy()
    other[77_777] += 3e-5
    assert apart(values, other) * np.linalg.norm(values) == pytest.approx(3e-5, rel=1e-4)


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    values = numbers(100)
    broken = values.copy()
    broken[[3, 50]] = np.nan, np.inf
    found = fingerprint(broken)
    assert found.not_finite == 2
    assert np.isfinite(found.sums).all()
    assert np.isfinite(found.norm)


def test_a_pure_scale_leaves_no_rest() -> None:
    values = numbers(2000)
    one, other = fingerprint(values), fingerprint(values * 1.001)
    scale, rest = factors(one.sums[None], other.sums[None])
    assert scale[0] == pytest.approx(1.001, abs=1e-12)
    assert rest[0] < 1e-12


def test_something_against_nothing_is_infinitely_far_and_nothing_against_nothing_is_near() -> None:
    assert apart(np.zeros(10), np.ones(10)) == np.inf
    assert apart(np.zeros(10), np.zeros(10)) == 0


def test_buckets_and_signs_are_the_same_bytes_everywhere() -> None:
    digest = hashlib.sha256(room._places().astype("<i8").tobytes()).hexdigest()
    assert digest == "a8c25556910650a6718f4b3197d3abd489e8f00b13bf129c0ae7801869b3a2f6"
    turns = np.stack([room._turn(piece) for piece in range(64)]).astype("<i8")
    assert (
        hashlib.sha256(turns.tobytes()).hexdigest()
        == "5b00d8d7bcc923166f0b5511db7b83f249510b7de7d98a953ed7a7ff45bddc3a"
    )


def test_exact_numbers_need_not_be_made_wider_first() -> None:
    for values in (np.arange(5000) % 7 - 3, np.arange(5000) % 3 == 0, (np.arange(5000) % 9).astype(np.uint8)):
        mine, wide = fingerprint(values), fingerprint(values.astype(np.float64))
        assert mine.statistics() == wide.statistics()
        np.testing.assert_array_equal(mine.sums, wide.sums)
