"""Blocks that join late are looked at where they join, however late that is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults.frozen import gradients, update_of
from faults.planting import Fault

from ambidex.compare import tracefile
from ambidex.compare.command import compare

GROWING = {"layers": 3, "grow_from": 2, "grow_at": 0.6, "steps": 20}  # the third block joins at step 12
DOWN = "model.layers.2.mlp.down_proj"
FAULTS = [
    Fault("update of a late weight x 1.01", "update", DOWN, update_of(f"{DOWN}.weight", lambda b, a: b + 1.01 * (a - b))),
    Fault("gradient of a late weight x 1.001", "backward", DOWN,
          gradients(lambda name, gradient: gradient * (1.001 if name == f"{DOWN}.weight" else 1))),
]  # fmt: skip


@pytest.fixture(scope="module")
def growing(train: Any) -> Path:
    found: Path = train(floor=True, trace_states=True, **GROWING)
    return found


def test_a_traced_run_that_grows_keeps_the_state_at_the_join_and_is_its_own_equal(
    growing: Path, train: Any
) -> None:
    legs = tracefile.read(growing / "trace.safetensors").legs
    assert sorted(leg.start for leg in legs if leg.mode == "state") == [0, 8, 12]
    verdict = compare([growing, train(from_trace=str(growing), **GROWING)])[0]
    assert verdict.same, verdict.first
    assert verdict.worst is not None
    assert verdict.worst.ratio == 0


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_in_a_block_that_joins_late_is_found_where_it_joins(
    fault: Fault, growing: Path, train: Any
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        # A weight that waits has no update and no gradient to be changed.
        fault.plant(patch)
        first = compare([growing, train(from_trace=str(growing), **GROWING)])[0].first
    assert first is not None
    assert (first.step, first.stage, first.module) == (12, fault.stage, fault.module)
