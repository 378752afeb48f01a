import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ambidex.randomness import symmetric, uniform


def test_the_numbers_are_the_same_bytes_on_every_machine_and_every_numpy():
    # Golden: a change here changes every run's first weights, which nobody may do unknowingly.
    digest = hashlib.sha256(uniform(7, "golden", 1000).astype("<f8").tobytes()).hexdigest()
    assert digest == "1ef30f5a58686f6aee233228343477b1747e8824a1193a9be771b1542b360346"


def test_first_weights_are_the_same_bytes_on_every_machine_and_every_numpy():
    digest = hashlib.sha256(symmetric(7, "golden", 1000, 0.02).astype("<f4").tobytes()).hexdigest()
    assert digest == "66547c4b9cd0a2e564e37d57b905ce950517c85ee333f8859eb0555236c3ad10"


@given(st.integers(0, 2**63), st.text(max_size=40), st.integers(0, 500))
def test_numbers_lie_in_the_unit_interval_and_a_longer_draw_begins_like_a_shorter_one(seed, name, count):
    numbers = uniform(seed, name, count)
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert np.array_equal(uniform(seed, name, count + 7)[:count], numbers)


def test_the_deviation_is_the_one_asked_for():
    numbers = symmetric(0, "many", 200_000, 0.02)
    assert abs(numbers.std() / 0.02 - 1) < 0.01
    assert abs(numbers.mean()) < 2e-4


def test_streams_of_different_names_and_seeds_are_unrelated():
    a, b, c = uniform(0, "a", 10_000), uniform(0, "b", 10_000), uniform(1, "a", 10_000)
    assert abs(np.corrcoef([a, b, c]) - np.eye(3)).max() < 0.05
