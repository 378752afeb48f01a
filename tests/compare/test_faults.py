"""A planted fault is found and named; the quick ones stand for a stage each, the others run under ``slow``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults import FAULTS, Fault
from faults_blind import BLIND

from ambidex.compare.command import compare
from ambidex.compare.judge import Verdict

QUICK = ("another initialisation", "attention output x 1.00001", "loss x 1.001", "one gradient x 1.00001", "accumulated twice",
         "no clipping", "moments forgotten at every step", "an update that writes nothing", "rate x 1.0001")  # fmt: skip
ADAMW = {"optimizer": "adamw", "learning_rate": 3e-3}


def judged(fault: Fault, train: Any, reference: Path, **settings: Any) -> Verdict:
    with pytest.MonkeyPatch.context() as patch:
        fault.plant(patch)
        candidate = train(**settings)
    return compare([reference, candidate])[0]


def named_right(fault: Fault, verdict: Verdict) -> bool:
    first = verdict.first
    return first is not None and first.stage == fault.stage and fault.module in ("", first.module)


@pytest.mark.parametrize("fault", [f for f in FAULTS if f.name in QUICK], ids=lambda f: f.name)
def test_a_fault_of_each_stage_is_found_and_named(fault: Fault, train: Any, reference: Path) -> None:
    verdict = judged(fault, train, reference, from_trace=str(reference))
    assert named_right(fault, verdict), verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_every_fault_is_found_and_named_with_muon(fault: Fault, train: Any, reference: Path) -> None:
    verdict = judged(fault, train, reference, from_trace=str(reference))
    assert named_right(fault, verdict), verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("fault", [f for f in FAULTS if f.optimizer != "muon"], ids=lambda f: f.name)
def test_every_fault_is_found_and_named_with_adamw(fault: Fault, train: Any, adamw_reference: Path) -> None:
    verdict = judged(fault, train, adamw_reference, from_trace=str(adamw_reference), **ADAMW)
    assert named_right(fault, verdict), verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_every_fault_is_found_and_named_in_bf16_by_its_fp32_steps(
    fault: Fault, train: Any, bf16_reference: Path
) -> None:
    verdict = judged(fault, train, bf16_reference, from_trace=str(bf16_reference), precision="bf16")
    assert named_right(fault, verdict), verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.name)
def test_every_fault_is_found_by_mailed_traces_alone(fault: Fault, train: Any, reference: Path) -> None:
    verdict = judged(fault, train, reference)
    assert verdict.same is False


@pytest.mark.slow
@pytest.mark.parametrize("fault", BLIND, ids=lambda f: f.name)
def test_faults_that_the_rules_were_not_tuned_on_are_found_and_named(
    fault: Fault, train: Any, reference: Path
) -> None:
    verdict = judged(fault, train, reference, from_trace=str(reference))
    assert named_right(fault, verdict), verdict.first
