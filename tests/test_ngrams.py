"""Rows for groups of tokens: which group has which, what a model does with them, and what cannot be done with such a model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ambidex
from ambidex import cli
from ambidex.model import LanguageModel, Shape, initialise
from ambidex.ngrams import NGramEmbedding
from tiny import TINY

SHAPE = Shape(
    vocabulary_size=37, layers=2, width=16, heads=2, kv_heads=1, feed_forward=24, context=24, ngrams=4, ngram_rows=50
)  # fmt: skip
GOLDEN = [[8001, 28465, 38529], [9613, 27629, 44599]]
TOKENS = st.lists(st.integers(0, 999_999), min_size=1, max_size=20)


def rows_of(
    tokens: list[int], earlier: list[int] | None = None, longest: int = 4, rows: int = 1000
) -> Tensor:
    with torch.device("meta"):  # no memory for the rows themselves
        table = NGramEmbedding(longest, rows, 1)
    found = table.rows_of(torch.tensor([tokens]), torch.tensor([earlier or []], dtype=torch.int64))
    return found[0]  # (T, longest - 1)


def small_model(shape: Shape = SHAPE) -> LanguageModel:
    model = LanguageModel(shape)
    initialise(model, seed=3)
    return model


def some_tokens(rows: int = 2, length: int = 12) -> Tensor:
    return torch.randint(SHAPE.vocabulary_size, (rows, length), generator=torch.Generator().manual_seed(0))


@given(TOKENS, st.integers(2, 16), st.integers(1, 2**24))
def test_each_length_has_rows_of_its_own(tokens, longest, rows):
    first = torch.arange(longest - 1) * rows
    found = rows_of(tokens, longest=longest, rows=rows)
    assert found.shape == (len(tokens), longest - 1)
    assert bool(((found >= first) & (found < first + rows)).all())


@given(TOKENS, st.integers(0, 20))
def test_what_came_earlier_counts_as_what_came_in_the_same_call(tokens, cut):
    cut = min(cut, len(tokens) - 1)
    assert torch.equal(rows_of(tokens)[cut:], rows_of(tokens[cut:], earlier=tokens[:cut]))


@given(TOKENS, TOKENS, st.lists(st.integers(0, 999_999), min_size=4, max_size=8))
def test_a_group_is_its_own_tokens_and_nothing_before_them(one, other, same):
    assert torch.equal(rows_of(one + same)[-1], rows_of(other + same)[-1])


def test_a_group_is_the_order_of_its_tokens_too():
    assert not torch.equal(rows_of([5, 6, 7, 8])[-1], rows_of([6, 5, 7, 8])[-1])
    assert not torch.equal(rows_of([5, 6])[-1], rows_of([6, 5])[-1])


def test_the_start_of_a_text_is_no_token_of_it():
    assert not torch.equal(rows_of([5])[-1], rows_of([0, 5])[-1])


@pytest.mark.parametrize("rows", [4096, 5000, 8192, 48_271, 65_536])
@pytest.mark.parametrize("vocabulary_size", [65, 256, 32_768, 999_983])
def test_groups_share_rows_no_more_often_than_chance_has_it(vocabulary_size, rows):
    # As many as there are rows, half of them of neighbouring tokens and half of them anywhere.
    generator = torch.Generator().manual_seed(1)
    anywhere = torch.randint(vocabulary_size, (rows // 2, 5), generator=generator)
    near = torch.randint(64, (rows // 2, 5), generator=generator)
    table = NGramEmbedding(5, rows, 1)
    for length in (2, 3, 4, 5):
        groups = torch.unique(torch.cat((anywhere, near))[:, :length], dim=0)
        found = table.rows_of(groups)[:, -1, length - 2]
        expected = rows * (1 - (1 - 1 / rows) ** len(groups))  # rows in use where each group falls anywhere
        assert len(torch.unique(found)) > 0.97 * expected


def test_a_group_has_the_same_row_on_every_machine():
    assert rows_of([3, 1, 4, 1, 5, 999_999], rows=16_384)[-2:].tolist() == GOLDEN


def test_a_row_learns_from_the_groups_that_have_it_and_from_no_others():
    model, tokens = small_model(), some_tokens()
    model(tokens).sum().backward()
    table = model.model.embed_ngrams
    used = torch.zeros(len(table.weight), dtype=torch.bool)
    used[table.rows_of(tokens).flatten()] = True
    assert torch.equal(table.weight.grad.any(dim=1), used)


def test_silent_rows_leave_the_untrained_model_as_it_is_without_them():
    silent = replace(SHAPE, residual_init=0.0)
    with_rows, without = small_model(silent), small_model(replace(silent, ngrams=1))
    assert torch.equal(with_rows(some_tokens()), without(some_tokens()))


def test_counted_parameters_are_the_built_ones():
    built = sum(weight.numel() for weight in LanguageModel(SHAPE).parameters())
    assert sum(SHAPE.parameters().values()) == built
    assert SHAPE.parameters()["n-grams"] == 3 * 50 * 16


@pytest.fixture
def run(tmp_path: Path, story: Path) -> Path:
    ambidex.train(**TINY, data=[str(story)], ngrams=3, ngram_rows=64, out=str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_an_export_is_refused_in_words_before_anything_is_written(kind, run, tmp_path, capsys):
    if kind == "gguf":
        pytest.importorskip("gguf")
    assert cli.main(["export", str(run), "--format", kind, "--to", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert "--ngrams 3" in shown
    assert "--ngrams 1" in shown
    assert [path.name for path in tmp_path.iterdir() if path.name != "story.txt"] == ["run"]
