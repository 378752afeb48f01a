"""A planted fault is found and named. These stand for a stage each; `suites.py` runs all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults.again import AGAIN
from faults.frozen import FROZEN
from faults.known import FAULTS
from faults.ngrams import NGRAMS
from faults.planting import Fault

from ambidex.compare.command import compare
from ambidex.compare.judge import Verdict

QUICK = ("another initialisation", "attention output x 1.00001", "loss x 1.001", "one gradient x 1.00001", "accumulated twice",
         "no clipping", "moments forgotten at every step", "an update that writes nothing", "rate x 1.0001")  # fmt: skip
BY_PROJECTION = (
    "values x 1.0001",
    "a bias of 1e-4 behind o_proj",
    "weight of the step before, one projection",
)
OF_GROUPS = ("one group has its neighbour's row", "the table's gradient x 1.0001", "the table not decayed")
MENDED = ("gradient through one block's by-pass lost", "rate x 1.00005", "rate of the step before")


def judged(fault: Fault, train: Any, reference: Path, **settings: Any) -> Verdict:
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        candidate = train(**settings)
    return compare([reference, candidate])[0]


def named_right(fault: Fault, verdict: Verdict) -> bool:
    first = verdict.first
    return first is not None and first.stage == fault.stage and fault.module_of(2) in ("", first.module)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in QUICK], ids=lambda f: f.name)
def test_a_fault_of_each_stage_is_found_and_named(fault: Fault, train: Any, reference: Path) -> None:
    verdict = judged(fault, train, reference, from_trace=str(reference))
    assert named_right(fault, verdict), verdict.first


@pytest.mark.parametrize("fault", [f for f in FROZEN if f.name in BY_PROJECTION], ids=lambda f: f.name)
def test_a_projection_inside_a_joined_product_is_named(fault: Fault, train: Any, reference: Path) -> None:
    verdict = judged(fault, train, reference, from_trace=str(reference))
    assert named_right(fault, verdict), verdict.first


@pytest.mark.parametrize("fault", [f for f in FROZEN + AGAIN if f.name in MENDED], ids=lambda f: f.name)
def test_a_by_pass_and_a_rate_are_told_from_what_they_look_like(
    fault: Fault, train: Any, adamw_reference: Path
) -> None:
    adamw = {"optimizer": "adamw", "learning_rate": 3e-3}
    verdict = judged(fault, train, adamw_reference, from_trace=str(adamw_reference), **adamw)
    assert named_right(fault, verdict), verdict.first


@pytest.mark.parametrize("fault", [f for f in NGRAMS if f.name in OF_GROUPS], ids=lambda f: f.name)
def test_the_table_of_groups_of_tokens_is_named(fault: Fault, train: Any, ngrams_reference: Path) -> None:
    verdict = judged(
        fault, train, ngrams_reference, from_trace=str(ngrams_reference), ngrams=4, ngram_rows=256
    )
    assert named_right(fault, verdict), verdict.first


def test_a_parameter_that_only_one_model_has_is_named(train: Any, reference: Path) -> None:
    fault = next(f for f in FROZEN if f.name == "untied embeddings")
    verdict = judged(fault, train, reference, from_trace=str(reference))
    assert named_right(fault, verdict), verdict.first
