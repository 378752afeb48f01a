"""The order of an epoch: a bijection, the same for ever."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ambidex.text.permutation import Permutation, mix


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_every_index_appears_exactly_once(size: int, key: int) -> None:
    order = Permutation(size, key)(np.arange(size))
    assert sorted(order.tolist()) == list(range(size))


@given(size=st.integers(1, 2**50), key=st.integers(0, 2**64 - 1), data=st.data())
def test_large_sizes_stay_inside_and_do_not_collide(size: int, key: int, data: st.DataObject) -> None:
    index = np.array(data.draw(st.lists(st.integers(0, size - 1), unique=True, max_size=50)), dtype=np.int64)
    order = Permutation(size, key)(index)
    assert ((order >= 0) & (order < size)).all()
    assert len(set(order.tolist())) == len(index)


@given(size=st.integers(1, 60), key=st.integers(0, 2**64 - 1))
def test_a_value_does_not_depend_on_what_else_is_asked(size: int, key: int) -> None:
    order = Permutation(size, key)
    together = order(np.arange(size)).tolist()
    assert together == [int(order(np.array([index]))[0]) for index in range(size)]


def test_the_order_is_the_same_for_ever() -> None:
    assert mix(1, 2, 3) == 7702586659592502839
    assert Permutation(10, 0)(np.arange(10)).tolist() == [7, 3, 0, 4, 2, 6, 1, 9, 8, 5]
    assert Permutation(1_000_003, 42)(np.arange(5)).tolist() == [197098, 644652, 62929, 933967, 912371]


def test_all_orders_of_four_come_up_about_equally_often() -> None:
    times = Counter(tuple(Permutation(4, key)(np.arange(4)).tolist()) for key in range(4800))
    assert len(times) == 24
    # 200 each expected; a chi-square of 23 degrees passes 64 once in 100,000 times.
    assert sum((count - 200) ** 2 / 200 for count in times.values()) < 64


def test_neighbours_are_not_kept_together() -> None:
    order = Permutation(10_000, 7)(np.arange(10_000))
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).sum() < 10  # 2 expected
