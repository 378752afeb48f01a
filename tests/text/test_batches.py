"""Batches: a function of (seed, step); every window once an epoch, every held-out token predicted once."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambidex.errors import Problems
from ambidex.text import IGNORED, Batches, Summary, Tokens, validation_batches
from ambidex.text.tokenizer import ByteTokenizer


def counted(train: int, validation: int = 0) -> Tokens:
    """Tokens whose values are their places, so that a batch shows where it was taken from."""
    return Tokens(
        train=np.arange(train, dtype=np.uint32),
        validation=np.arange(validation, dtype=np.uint32),
        tokenizer=ByteTokenizer(),
        data_hash="",
        train_bytes=train,
        validation_bytes=validation,
        summary=Summary((), 0, 0, 0, 0, {}),
        folder=Path(),
    )


def test_the_order_of_batches_is_the_same_for_ever() -> None:
    batches = Batches(counted(10_000), context=16, batch_size=4, seed=1234)
    assert batches.starts(0).tolist() == [6962, 8466, 4850, 6642]
    assert batches.starts(155).tolist() == [4498, 3842, 4562, 6735]  # straddles two epochs
    whole = hashlib.sha256()
    for step in range(400):
        for array in batches.batch(step):
            whole.update(np.ascontiguousarray(array).astype("<i8").tobytes())
    assert whole.hexdigest() == "f0cde84bd3232f34e25f2990b8c1d60da4221e32f61e0c0d0401f3f0309668bd"


@given(step=st.integers(0, 10**12), seed=st.integers(-(2**63), 2**63))
def test_a_batch_depends_on_seed_and_step_alone(step: int, seed: int) -> None:
    tokens = counted(1000)
    one, other = Batches(tokens, 8, 3, seed), Batches(tokens, 8, 3, seed)
    other.batch(step + 1)
    for left, right in zip(one.batch(step), other.batch(step), strict=True):
        np.testing.assert_array_equal(left, right)


@given(
    train=st.integers(2, 2000),
    context=st.integers(1, 64),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_targets_are_the_inputs_one_token_later(train: int, context: int, batch_size: int, seed: int) -> None:
    if train < context + 1:
        return
    inputs, targets = Batches(counted(train), context, batch_size, seed).batch(seed * 7)
    assert inputs.shape == targets.shape == (batch_size, context)
    assert inputs.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(inputs + 1, targets)
    assert targets.max() < train


@given(
    train=st.integers(20, 2000), context=st.integers(1, 19), seed=st.integers(0, 99), epoch=st.integers(0, 20)
)
def test_every_window_is_visited_exactly_once_an_epoch(
    train: int, context: int, seed: int, epoch: int
) -> None:
    sequences = Batches(counted(train), context, 1, seed).sequences
    batches = Batches(counted(train), context, sequences, seed)  # a step is an epoch
    starts = sorted(batches.starts(epoch).tolist())
    assert batches.epoch(epoch) == epoch
    offset = starts[0]
    assert starts == [offset + number * context for number in range(batches.sequences)]
    assert offset < context or batches.sequences == 1
    assert train - batches.sequences * context < 2 * context + 1  # no more than two windows are left out


def test_epochs_differ_in_order_and_in_offset() -> None:
    batches = Batches(counted(100_000), 10, 1, seed=5)
    first, second = (
        [int(batches.starts(epoch * batches.sequences + place)[0]) for place in range(50)] for epoch in (0, 1)
    )
    assert first != second
    offsets = {int(batches.starts(epoch * batches.sequences)[0]) % 10 for epoch in range(200)}
    assert offsets == set(range(10))


def test_seeds_differ() -> None:
    tokens = counted(100_000)
    assert len({tuple(Batches(tokens, 10, 4, seed).starts(0).tolist()) for seed in range(100)}) == 100


@given(batch_size=st.integers(1, 50))
def test_the_batch_size_changes_how_many_are_taken_but_not_their_order(batch_size: int) -> None:
    tokens = counted(3000)
    batches = Batches(tokens, 7, batch_size, seed=3)
    taken = np.concatenate([batches.starts(step) for step in range(-(-500 // batch_size))])[:500]
    np.testing.assert_array_equal(taken, Batches(tokens, 7, 500, seed=3).starts(0))
    assert batches.steps_per_epoch == batches.sequences / batch_size


@pytest.mark.parametrize("train", [0, 1, 16])
def test_text_shorter_than_a_sequence_says_what_was_found_and_what_to_type(train: int) -> None:
    with pytest.raises(Problems) as raised:
        Batches(counted(train), 16, 4, 0)
    assert raised.value.exit_code == 3
    assert f"{train} tokens" in str(raised.value)
    assert "17" in str(raised.value)
    assert (f"--context {train - 1}" in str(raised.value)) == (train > 1)


def test_text_of_exactly_one_sequence_is_enough() -> None:
    inputs, _ = Batches(counted(17), 16, 2, 0).batch(3)
    np.testing.assert_array_equal(inputs, [list(range(16))] * 2)


@given(tokens=st.integers(2, 500), context=st.integers(1, 40), batch_size=st.integers(1, 7))
def test_every_held_out_token_after_the_first_is_predicted_once(
    tokens: int, context: int, batch_size: int
) -> None:
    predicted = []
    for inputs, targets in validation_batches(counted(0, tokens), context, batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size
        kept = targets != IGNORED
        np.testing.assert_array_equal(inputs[kept] + 1, targets[kept])
        predicted += targets[kept].tolist()
    assert predicted == list(range(1, tokens))


@given(tokens=st.integers(2, 3000), limit=st.integers(1, 4000))
def test_a_limit_takes_windows_spread_over_the_whole_part_and_the_same_ones_each_time(
    tokens: int, limit: int
) -> None:
    def taken() -> list[int]:
        batches = validation_batches(counted(0, tokens), 10, 4, limit)
        return [target for _, targets in batches for target in targets[targets != IGNORED].tolist()]

    predicted = taken()
    assert predicted == taken()
    assert len(predicted) == len(set(predicted))
    assert len(predicted) <= min(tokens - 1, limit + 9)
    if limit >= tokens - 1:
        assert len(predicted) == tokens - 1
    elif len(predicted) > 10:
        assert max(predicted) > (tokens - 1) * (1 - 10 / len(predicted)) - 20


@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_to_predict_is_a_problem(tokens: int) -> None:
    with pytest.raises(Problems, match="--validation-fraction") as raised:
        list(validation_batches(counted(50, tokens), 8, 2))
    assert raised.value.exit_code == 3
