"""`train --trace` records without changing the training, and the legs that it plays are the training itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ambidex
from ambidex.compare import tracefile
from ambidex.compare.command import compare
from ambidex.compare.fingerprint import errors
from ambidex.compare.legs import others_for
from ambidex.compare.tracefile import Leg
from ambidex.config import Settings
from ambidex.errors import Exit, Problems
from ambidex.runs import Run
from conftest import SMALL


def losses(path: Path) -> list[tuple[float, float]]:
    return [(row.loss, row.grad_norm) for row in Run(path).metrics]


def test_a_traced_training_is_bit_for_bit_the_untraced_one(train: Any, reference: Path) -> None:
    assert losses(train(trace=False)) == losses(reference)


def test_without_trace_nothing_is_written_and_no_hook_is_left(
    train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch import nn

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a hook, although nothing is traced")

    monkeypatch.setattr(nn.Module, "register_forward_hook", refuse)
    path = train(trace=False)
    assert not (path / "trace.safetensors").exists()
    assert not (path / "probes").exists()


def test_two_steps_from_a_saved_state_are_the_runs_own(reference: Path) -> None:
    legs = tracefile.read(reference / "trace.safetensors").legs
    free, state = legs[Leg("free", 0, "fp32")], legs[Leg("state", 8, "fp32")]
    assert {key.step for key in state.keys} == {8, 9}
    for key in state.keys:
        assert np.array_equal(state.sums[state.row[key]], free.sums[free.row[key]]), key


def test_a_step_fed_with_its_own_tensors_is_the_step_itself(train: Any, reference: Path) -> None:
    again = train(from_trace=str(reference))
    verdict = compare([reference, again])[0]
    assert verdict.modes == ["fed", "state", "free"]
    assert verdict.worst is not None
    assert verdict.worst.ratio == 0


def test_fingerprints_are_of_the_whole_batch_however_it_is_split(train: Any, reference: Path) -> None:
    split = tracefile.read(train(micro_batch_size=2) / "trace.safetensors").legs[Leg("free", 0, "fp32")]
    whole = tracefile.read(reference / "trace.safetensors").legs[Leg("free", 0, "fp32")]
    first = [row for row, key in enumerate(whole.keys) if key.step == 0]
    theirs = [split.row[whole.keys[row]] for row in first]
    assert np.array_equal(whole.statistics[first, 0], split.statistics[theirs, 0])
    assert errors(whole.sums[first], split.sums[theirs], whole.norms[first]).max() < 1e-4


def test_every_floor_of_the_first_steps_is_measured_and_small(reference: Path) -> None:
    trace = tracefile.read(reference / "trace.safetensors")
    assert trace.floor_legs == ["fp64", "one ulp, 1", "one ulp, 2", "one ulp, 3", "noise, 1"]
    free = trace.legs[Leg("free", 0, "fp32")]
    outputs = [free.floor[row] for row, key in enumerate(free.keys) if key.step == 0 and key.kind == "output"]
    assert 1e-8 < float(np.median(outputs)) < 1e-5
    updates = [
        free.floor[row] for row, key in enumerate(free.keys) if key.step < 10 and key.kind == "steady_update"
    ]
    assert 0 < max(updates) < 1e-2


def test_where_gradients_begin_late_the_floor_of_many_steps_has_twelve_roundings(
    ngrams_reference: Path,
) -> None:
    legs = tracefile.read(ngrams_reference / "trace.safetensors").floor_legs
    assert len(legs) == 13
    assert [leg for leg in legs if leg.startswith("noise")] == ["noise, 1", "noise, 2", "noise, 3"]


@pytest.mark.parametrize(
    ("settings", "count", "roundings"),
    [
        ({}, 10, 4), ({"ngrams": 2}, 10, 12), ({"ngrams": 2}, 2, 4), ({"tied": False}, 10, 12),
        ({"sampled_softmax": 2}, 10, 12), ({"layers": 4, "grow_from": 1, "steps": 10}, 10, 12), ({"layers": 4, "grow_from": 1}, 10, 4), ({"layers": 1, "grow_from": 1}, 10, 4),
    ],
)  # fmt: skip
def test_how_many_roundings_a_floor_takes(settings: dict[str, Any], count: int, roundings: int) -> None:
    assert others_for(Settings(**settings), count) == roundings


def test_a_reference_without_states_is_refused_with_what_to_do(train: Any, tmp_path: Path) -> None:
    plain = train(trace=False)
    with pytest.raises(Problems, match="--trace-states") as caught:
        train(from_trace=str(plain))
    assert caught.value.exit_code == Exit.USAGE
    with pytest.raises(Problems) as caught:
        train(from_trace=str(tmp_path / "nowhere"))
    assert caught.value.exit_code == Exit.DATA


def test_a_reference_of_another_model_is_refused(train: Any, reference: Path) -> None:
    with pytest.raises(Problems, match="another model") as caught:
        train(from_trace=str(reference), width=32)
    assert caught.value.exit_code == Exit.USAGE


def test_a_damaged_state_is_refused_by_name(train: Any) -> None:
    broken = train(trace_states=True)
    file = broken / "probes" / "step-000008" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(Problems, match="sha256 mismatch") as caught:
        train(from_trace=str(broken))
    assert caught.value.exit_code == Exit.DATA


def test_a_resumed_run_keeps_what_was_recorded_before(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ambidex import trainer

    whole = train(save_every=3)
    original = trainer.Trainer.update

    def stop_at_six(self: Any) -> Any:
        if self.step == 6 and type(self.observer) is not trainer.Observer:
            raise KeyboardInterrupt
        return original(self)

    out = whole.parent / "resumed"
    settings = {**SMALL, "save_every": 3, "data": list(Run(whole).card["config"]["data"]), "out": str(out)}
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "update", stop_at_six)
        with pytest.raises(KeyboardInterrupt):
            ambidex.train(**settings)
    ambidex.train(**settings, resume=True)
    leg = Leg("free", 0, "fp32")
    before, after = (tracefile.read(p / "trace.safetensors").legs[leg] for p in (whole, out))
    assert after.keys == before.keys
    assert np.array_equal(after.sums, before.sums)
