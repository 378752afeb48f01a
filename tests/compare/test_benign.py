"""No honest variation raises an alarm. Each is judged by the reference's floor alone, in every mode that applies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benign import BENIGN, ENVIRONMENTS, Benign

from ambidex.compare.command import compare
from conftest import SMALL
from tiny import ambidex, flags

QUICK = ("micro-batches of 2", "attention by hand", "unfused AdamW, one tensor at a time")


@pytest.fixture(autouse=True)
def switches_as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def candidate(one: Benign, train: Any, reference: Path, **settings: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        one.change(patch)
        return Path(train(from_trace=str(reference), **{**settings, **one.settings}))


@pytest.mark.parametrize("one", [b for b in BENIGN if b.name in QUICK], ids=lambda b: b.name)
def test_a_few_honest_variations_are_the_same(one: Benign, train: Any, reference: Path) -> None:
    verdict = compare([reference, candidate(one, train, reference)])[0]
    assert verdict.same, verdict.first
    assert verdict.modes == ["fed", "state", "free"]


@pytest.mark.slow
@pytest.mark.parametrize("one", BENIGN, ids=lambda b: b.name)
def test_honest_variations_are_the_same_with_muon(one: Benign, train: Any, reference: Path) -> None:
    verdict = compare([reference, candidate(one, train, reference)])[0]
    assert verdict.same, verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("one", BENIGN, ids=lambda b: b.name)
def test_honest_variations_are_the_same_with_adamw(one: Benign, train: Any, adamw_reference: Path) -> None:
    run = candidate(one, train, adamw_reference, optimizer="adamw", learning_rate=3e-3)
    verdict = compare([adamw_reference, run])[0]
    assert verdict.same, verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("one", BENIGN, ids=lambda b: b.name)
def test_honest_variations_are_the_same_in_bf16(one: Benign, train: Any, bf16_reference: Path) -> None:
    verdict = compare([bf16_reference, candidate(one, train, bf16_reference, precision="bf16")])[0]
    assert verdict.same, verdict.first


@pytest.mark.slow
@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_other_instruction_sets_are_the_same(name: str, reference: Path, text: Path, tmp_path: Path) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("these variables are for x86 Linux")
    settings = {**SMALL, "data": [str(text)], "out": str(tmp_path / "run"), "from_trace": str(reference)}
    done = ambidex("train", *flags(**settings), env={**os.environ, **ENVIRONMENTS[name]})
    assert done.returncode == 0, done.stderr
    verdict = compare([reference, tmp_path / "run"])[0]
    assert verdict.same, verdict.first
