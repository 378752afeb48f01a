"""No honest variation raises an alarm. Each is judged by the reference's floor alone; `suites.py` runs all of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from benign import BENIGN, Benign

from ambidex.compare.command import compare

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
