"""The judge names the most upstream stage that differs, calls nothing different below its limit, and refuses what it must."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FREE, MATRICES, NORMS, folder, keys_of, table

from ambidex.compare import cards
from ambidex.compare.folder import Row
from ambidex.compare.judge import judge
from ambidex.compare.stages import STAGES
from ambidex.compare.tracefile import Key, Leg

STAGE_OF = {"tokens": "data", "output": "forward", "loss": "loss", "output_gradient": "backward", "gradient": "backward",
            "norm": "clip", "clipped": "clip", "exp_avg": "moments", "exp_avg_sq": "moments", "update": "update",
            "steady_update": "update"}  # fmt: skip


def stage_of(key: Key) -> str:
    return "loss" if key == Key(key.step, "output_gradient", "lm_head") else STAGE_OF[key.kind]


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(keys_of(0)))
def test_one_tensor_far_above_its_floor_is_found_and_its_stage_named(key: Key) -> None:
    verdict = judge(folder("a"), folder("b", legs={FREE: table({key: 100.0})}))
    assert verdict.same is False
    assert verdict.first is not None
    assert verdict.first.stage == stage_of(key)
    assert verdict.first.step == 0


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from([k for k in keys_of(0) if k.kind != "tokens"]), min_size=2, max_size=6))
def test_of_several_the_most_upstream_stage_is_blamed(changed: set[Key]) -> None:
    first = judge(folder("a"), folder("b", legs={FREE: table(dict.fromkeys(changed, 50.0))})).first
    assert first is not None
    assert STAGES.index(first.stage) == min(STAGES.index(stage_of(key)) for key in changed)


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from([k for k in keys_of(0) + keys_of(1) if k.kind != "tokens"]),
        st.floats(0, 2),
        max_size=30,
    )
)
def test_nothing_below_its_limit_is_called_different(changed: dict[Key, float]) -> None:
    verdict = judge(folder("a"), folder("b", legs={FREE: table(changed)}))
    assert verdict.same is True
    assert verdict.first is None
    assert verdict.worst is not None
    assert verdict.worst.ratio < 6


def test_a_run_is_the_same_as_itself_in_every_digit() -> None:
    verdict = judge(folder("a"), folder("b"))
    assert verdict.same is True
    assert verdict.worst is not None
    assert verdict.worst.ratio == 0


def test_the_guilty_module_is_the_first_in_the_order_of_execution() -> None:
    changed = {Key(0, "output", name): 100.0 for name in ("model.layers.1.mlp", "model.layers.1", "lm_head")}
    first = judge(folder("a"), folder("b", legs={FREE: table(changed)})).first
    assert first is not None
    assert (first.stage, first.module) == ("forward", "model.layers.1.mlp")


def test_a_gradient_that_is_wrong_is_blamed_on_its_module_and_not_on_those_behind_it() -> None:
    changed = {Key(0, "gradient", "model.layers.1.mlp.up_proj.weight"): 100.0,
               Key(0, "gradient", "model.layers.0.mlp.up_proj.weight"): 100.0}  # fmt: skip
    first = judge(folder("a"), folder("b", legs={FREE: table(changed)})).first
    assert first is not None
    assert (first.stage, first.module) == ("backward", "model.layers.1.mlp.up_proj")


def test_all_gradients_wrong_with_clean_flow_between_modules_is_the_loops_fault() -> None:
    changed = {Key(0, "gradient", name): 100.0 for name in MATRICES + NORMS}
    first = judge(folder("a"), folder("b", legs={FREE: table(changed)})).first
    assert first is not None
    assert first.stage == "accumulation"


def test_a_forward_that_differs_only_after_a_clean_step_is_stale() -> None:
    first = judge(
        folder("a"), folder("b", legs={FREE: table({Key(1, "output", "model.layers.0.mlp"): 100.0})})
    ).first
    assert first is not None
    assert (first.stage, first.module, first.step) == ("stale", "model.layers.0.mlp", 1)


def test_updates_off_by_one_factor_are_the_schedules_fault() -> None:
    scaled = table()
    for row, key in enumerate(scaled.keys):
        if key.kind.endswith("update"):
            scaled.sums[row] *= 1.001
    first = judge(folder("a"), folder("b", legs={FREE: scaled})).first
    assert first is not None
    assert first.stage == "schedule"
    assert "1.001" in first.words


def test_another_rate_in_the_metrics_is_the_schedules_fault() -> None:
    rows = [[Row(step, 2.0, rate, 1.0) for step in (1, 2, 3)] for rate in (1e-3, 1.001e-3)]
    first = judge(folder("a", rows=rows[0]), folder("b", rows=rows[1])).first
    assert first is not None
    assert (first.stage, first.step) == ("schedule", 0)


def test_a_tensor_whose_floor_is_high_is_not_judged_but_listed() -> None:
    key = Key(0, "output", "lm_head")
    reference = table()
    reference.floor[reference.row[key]] = 0.2
    verdict = judge(folder("a", legs={FREE: reference}), folder("b", legs={FREE: table({key: 1e5})}))
    assert verdict.same is True
    assert [one["tensor"] for one in verdict.not_judged] == ["output of lm_head"]


def test_a_candidates_own_high_floor_does_not_excuse_it() -> None:
    key = Key(0, "output", "model.layers.0")
    rough = table({key: 100.0})
    rough.floor[:] = 1e-3
    assert judge(folder("a"), folder("b", legs={FREE: rough})).same is False


def test_more_numbers_that_are_not_finite_are_a_difference() -> None:
    broken = table()
    broken.statistics[broken.row[Key(0, "output", "model.layers.0.mlp")], 4] = 1
    assert judge(folder("a"), folder("b", legs={FREE: broken})).same is False


@pytest.mark.parametrize(
    ("card", "word"),
    [
        ({"config": {"seed": 1, "layers": 2}}, "--seed"),
        ({"data": {"hash": "e"}}, "data hash"),
        ({"precision": "bf16"}, "bf16"),
    ],
)
def test_other_trainings_cannot_be_compared_and_the_reason_is_given(card: dict, word: str) -> None:
    verdict = judge(folder("a"), folder("b", card=card))
    assert verdict.same is None
    assert word in " ".join(map(str, verdict.problems))


def test_other_first_weights_are_the_verdict() -> None:
    first = judge(folder("a"), folder("b", card={"weights_sha256": "b"})).first
    assert first is not None
    assert first.stage == "weights"


@pytest.mark.parametrize(
    ("card", "kind"),
    [({}, "same"), ({"build": {"torch": "2.6.0+cu124"}}, "version"), ({"device": {"name": "cuda:0"}}, "device"),
     ({"build": {"torch": "2.6.0+cu124"}, "device": {"name": "cuda:0"}}, "both")],
)  # fmt: skip
def test_a_pair_is_blamed_on_what_changed_and_on_neither_where_both_did(card: dict, kind: str) -> None:
    assert judge(folder("a"), folder("b", card=card)).kind == kind


@pytest.mark.parametrize(("update", "stage"), [(0.5, "stale"), (4.0, "update")])
def test_a_second_forward_that_updates_close_to_their_limit_explain_is_no_stale_value(
    update: float, stage: str
) -> None:
    off = {
        Key(0, "update", MATRICES[0]): update,
        **{key: 20.0 for key in keys_of(1) if key.kind == "output"},
    }
    first = judge(folder("a"), folder("b", legs={FREE: table(off)})).first
    assert first is not None
    assert first.stage == stage
    assert first.step == (1 if stage == "stale" else 0)


def test_states_of_another_run_are_not_taken_for_the_references() -> None:
    leg = Leg("state", 8, "fp32")
    steps = (8, 9)
    off = table({Key(8, "output", "lm_head"): 1e4}, steps)
    reference = folder("a", legs={FREE: table(), leg: table(steps=steps)})
    stranger = folder("b", legs={FREE: table(), leg: off}, origin="somebody else")
    assert judge(reference, stranger).modes == ["free"]
    assert judge(reference, folder("b", legs={FREE: table(), leg: off}, origin="a")).same is False


def test_without_traces_equal_digits_are_the_same_and_anything_else_is_left_unjudged() -> None:
    rows = [Row(step, 2.0 / step, 1e-3, 1.0) for step in (1, 2, 3)]
    plain = folder("a", legs={}, rows=rows)
    assert judge(plain, folder("b", legs={}, rows=rows)).same is True
    verdict = judge(plain, folder("b", legs={}, rows=[*rows[:2], Row(3, 0.7, 1e-3, 1.0)]))
    assert verdict.same is None
    assert "--trace" in str(verdict.problems[0])


def test_every_setting_is_either_free_or_must_be_equal() -> None:
    pytest.importorskip("pydantic")
    from ambidex import config

    numeric = {name for name, info in config.fields().items() if config.is_numeric(info)}
    assert set(config.fields()) >= cards.FREE
    assert numeric & cards.FREE == {"compile", "micro_batch_size", "precision"}
    assert set(config.fields()) - numeric == cards.FREE - {"compile", "micro_batch_size", "precision"}


def test_the_floor_is_never_below_half_a_unit_in_the_last_place() -> None:
    reference = table(floor=0.0)
    key = Key(0, "output", "lm_head")
    other = table()
    other.sums[other.row[key]] *= 1 + 2.0**-24
    assert judge(folder("a", legs={FREE: reference}), folder("b", legs={FREE: other})).same is True
    assert np.isfinite(reference.floor).all()
