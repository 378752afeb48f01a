"""A floor that is no rounding judges nothing: legs with other data, other first weights, or another dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from faults.ngrams import NGRAMS
from made import FREE, folder, table
from torch import nn

import ambidex
from ambidex.compare.command import compare
from ambidex.compare.folder import Row
from ambidex.compare.judge import judge
from ambidex.compare.report import exit_code
from ambidex.compare.soundness import unsound
from ambidex.compare.tracefile import Trace
from ambidex.errors import Exit, Problems


def with_floor(kind: str, floor: float, step: int = 0) -> Trace:
    made = table()
    for key, row in made.row.items():
        if key.kind == kind and key.step == step:
            made.floor[row] = floor
    return Trace("a", "a", "fp32", {FREE: made})


@pytest.mark.parametrize(("kind", "floor", "words"), [
    ("tokens", 1.2, "the tokens of step 0 are not the same"),
    ("output", 0.3, "13 of 13 outputs are more than 5% apart"),
])  # fmt: skip
def test_legs_that_differ_by_more_than_rounding_are_refused_with_what_differs(
    kind: str, floor: float, words: str
) -> None:
    assert [words in problem.found for problem in unsound("a", with_floor(kind, floor))] == [True]
    one, other = folder("a"), folder("b")
    assert one.trace is not None
    one.trace.legs[FREE] = with_floor(kind, floor).legs[FREE]
    verdict = judge(one, other)
    assert verdict.same is None
    assert exit_code([verdict]) == Exit.USAGE


def test_a_floor_of_rounding_and_one_that_grew_high_later_are_sound() -> None:
    assert unsound("a", with_floor("output", 1e-6)) == []
    assert unsound("a", with_floor("output", 0.02)) == []  # bf16
    assert unsound("a", with_floor("output", 0.3, step=1)) == []


class Net(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.first, self.drop, self.last = nn.Linear(4, 16), nn.Dropout(dropout), nn.Linear(16, 2)
        for number, weight in enumerate(self.parameters()):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.drop(self.first(x)))
        return found


def train(
    path: Path, leg: int, *, dropout: float = 0.0, data: int = 0, factor: float = 1.0, at: str = ""
) -> None:
    model = Net(dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    draws = torch.Generator().manual_seed(data)
    with ambidex.trace(model, optimizer, path, leg=leg):
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 4, generator=draws)).square().mean().backward()
            for name, weight in model.named_parameters():
                if name == at and weight.grad is not None:
                    weight.grad.mul_(factor)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()


def traced(path: Path, **options: Any) -> Path:
    for leg in range(4):
        train(path, leg, **options)
    return path


def test_weights_that_begin_at_nothing_are_judged_like_any_others(train: Any) -> None:
    settings = {"residual_init": 0.0, "ngrams": 3, "ngram_rows": 64, "steps": 4}
    reference = train(floor=True, trace_states=True, **settings)
    honest = train(from_trace=str(reference), micro_batch_size=4, **settings)
    assert compare([reference, honest])[0].same is True
    fault = next(one for one in NGRAMS if one.name == "the table's gradient x 1.0001")
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        faulty = train(from_trace=str(reference), **settings)
    first = compare([reference, faulty])[0].first
    assert first is not None
    assert (first.stage, first.module) == (fault.stage, fault.module)


def test_a_leg_with_other_data_is_refused_when_it_is_recorded_and_leaves_the_trace_alone(
    tmp_path: Path,
) -> None:
    train(tmp_path / "run", 0)
    before = (tmp_path / "run" / "trace.safetensors").read_bytes()
    with pytest.raises(Problems, match="Leg 1 was given other data than leg 0"):
        train(tmp_path / "run", 1, data=1)
    assert (tmp_path / "run" / "trace.safetensors").read_bytes() == before


def test_dropout_that_every_leg_draws_anew_makes_no_floor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    one, other = traced(tmp_path / "one", dropout=0.5), traced(tmp_path / "other", dropout=0.5)
    (verdict,) = compare([one, other])
    assert verdict.same is None
    assert "more than rounding" in verdict.problems[0].what


def test_one_gradient_scaled_before_clipping_is_named_and_is_not_among_what_inherits_it(
    tmp_path: Path,
) -> None:
    one = traced(tmp_path / "one")
    other = traced(tmp_path / "other", factor=1.001, at="last.bias")
    first = compare([one, other])[0].first
    assert first is not None
    assert (first.stage, first.module) == ("clip", "last")
    assert "last.bias" not in compare([one, other])[0].downstream


def test_a_run_that_stopped_early_is_noted() -> None:
    card = {"config": {"seed": 0, "layers": 2, "steps": 9}}
    rows = [Row(1, 5.0, 0.1, 1.0), Row(2, 4.0, 0.1, 1.0)]
    verdict = judge(folder("a", card=card, rows=rows), folder("b", card=card, rows=rows))
    assert verdict.same is True
    assert verdict.notes == [f"{name} has 2 of its 9 steps; nothing is said of the others." for name in "ab"]


def test_a_pair_in_the_wrong_order_is_noted() -> None:
    verdict = judge(folder("a", origin="b"), folder("b"))
    assert "a was trained --from-trace b: the other way round more can be judged." in verdict.notes
