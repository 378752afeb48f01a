"""The judge names the most upstream stage that differs, calls nothing different below its limit, and refuses what it must."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made import FLOOR, FREE, MATRICES, NORMS, folder, keys_of, table, tensor

from ambidex.compare import cards
from ambidex.compare.bias import is_bias_correction
from ambidex.compare.fingerprint import STATISTICS, Fingerprint, fingerprint
from ambidex.compare.folder import Row
from ambidex.compare.judge import judge
from ambidex.compare.stages import STAGES
from ambidex.compare.tracefile import Key, Leg, Record, Table

STAGE_OF = {"tokens": "data", "output": "forward", "loss": "loss", "output_gradient": "backward", "gradient": "backward",
            "norm": "clip", "clipped": "clip", "exp_avg": "moments", "exp_avg_sq": "moments", "update": "update",
            "steady_update": "update"}  # fmt: skip


def made_of(key: Key, kind: str, off: dict[str, float]) -> Fingerprint:
    values = tensor(key._replace(kind=kind))
    return fingerprint(values * (1 + off.get(kind, 0.0) * FLOOR))


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


@pytest.mark.parametrize(("elements", "same"), [(2**6, False), (2**14, True), (2**20, True)])
def test_a_norm_may_be_as_far_off_as_a_kernel_that_adds_that_many_squares_in_fp32(
    elements: int, same: bool
) -> None:
    """torch's clip_grad_norm_ on a CPU was off by 2.5e-6 for a largest tensor of 2^14 elements."""
    norm = Key(0, "norm", "gradient")
    tables = table(floor=1e-9), table({norm: 2500.0}, floor=1e-9)
    for made in tables:
        for key, row in made.row.items():
            if key.kind == "gradient":
                made.statistics[row, STATISTICS.index("elements")] = elements
    verdict = judge(folder("a", legs={FREE: tables[0]}), folder("b", legs={FREE: tables[1]}))
    assert verdict.same is same
    assert same or (verdict.first is not None and verdict.first.stage == "clip")


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


def scaled(
    by: dict[str, float], kinds: tuple[str, ...] = ("update", "steady_update"), factor: float = 1.0
) -> Table:
    """Every tensor of these kinds times ``by`` its parameter's factor, or else ``factor``."""
    made = table()
    for row, key in enumerate(made.keys):
        if key.kind in kinds:
            made.sums[row] *= by.get(key.name, factor)
    return made


def coarse(*sharp: str) -> Table:
    """A reference in which only these parameters' updates are sharp: one floor in a million, the others' 1e-4."""
    made = table()
    for row, key in enumerate(made.keys):
        if key.kind.endswith("update") and key.name not in sharp:
            made.floor[row] = 1e-4
    return made


def test_a_rate_is_told_by_all_updates_together_where_only_one_is_sharp_enough_to_differ() -> None:
    reference = folder("a", legs={FREE: coarse(MATRICES[0])})
    first = judge(reference, folder("b", legs={FREE: scaled({}, factor=1.0001)})).first
    assert first is not None
    assert (first.stage, first.module) == ("schedule", "optimizer")


def test_one_update_off_by_a_factor_is_no_rate_where_the_others_are_as_they_should_be() -> None:
    reference = folder("a", legs={FREE: coarse(MATRICES[0])})
    first = judge(reference, folder("b", legs={FREE: scaled({MATRICES[0]: 1.0001})})).first
    assert first is not None
    assert (first.stage, first.module) == ("update", MATRICES[0].removesuffix(".weight"))


@pytest.mark.parametrize("own", [0.0, 100.0])
def test_a_by_pass_is_told_from_the_module_that_reads_beside_it(own: float) -> None:
    """A tensor that no module made, read by a norm and by the block around it, has a wrong gradient."""
    norm, block = "model.layers.1.input_layernorm", "model.layers.1"

    def with_input(off: dict[str, float]) -> Table:
        plain = table()
        record: Record = {}
        for key, row in plain.row.items():
            if key == Key(key.step, "output", norm):
                record |= {
                    Key(key.step, kind, norm): made_of(key, kind, off)
                    for kind in ("input", "input_gradient", "own_gradient")
                }
            record[key] = made_of(key, key.kind, {})
            assert row >= 0
        found = Table.of(record)
        found.floor[:] = FLOOR
        return found

    reference = folder("a", legs={FREE: with_input({})})
    run = folder("b", legs={FREE: with_input({"input_gradient": 100.0, "own_gradient": own})})
    first = judge(reference, run).first
    assert first is not None
    assert (first.stage, first.module) == ("backward", norm if own else block)


def test_a_moment_as_far_off_as_its_gradient_just_within_the_limit_is_the_backwards() -> None:
    name = MATRICES[0]
    close = {Key(0, "gradient", name): 5.5, Key(0, "clipped", name): 5.5, Key(0, "exp_avg", name): 6.5}
    first = judge(folder("a"), folder("b", legs={FREE: table(close)})).first
    assert first is not None
    assert (first.stage, first.module) == ("backward", name.removesuffix(".weight"))
    first = judge(
        folder("a"), folder("b", legs={FREE: table({**close, Key(0, "exp_avg", name): 40.0})})
    ).first
    assert first is not None
    assert first.stage == "moments"


def test_a_gradient_that_only_one_run_has_is_the_backwards_of_its_module() -> None:
    whole = table()
    lost = Key(0, "gradient", MATRICES[1])
    run = folder("b", legs={FREE: whole.only(row for row, key in enumerate(whole.keys) if key != lost)})
    first = judge(folder("a"), run).first
    assert first is not None
    assert (first.stage, first.module) == ("backward", MATRICES[1].removesuffix(".weight"))
    assert "only one" in first.words


@pytest.mark.parametrize(("beta1", "beta2"), [(0.9, 0.999), (0.8, 0.95)])
def test_a_bias_correction_is_told_from_a_rate_by_its_factor_at_each_step(beta1: float, beta2: float) -> None:
    left_out = {k: (1 - beta1 ** (k + 1)) / (1 - beta2 ** (k + 1)) ** 0.5 for k in (0, 1, 8, 9)}
    assert is_bias_correction(left_out, (beta1, beta2))
    assert not is_bias_correction(dict.fromkeys(left_out, 1.0001), (beta1, beta2))
    assert not is_bias_correction({k: (k + 1) / 10 for k in left_out}, (beta1, beta2))
    assert not is_bias_correction(left_out, None)


def test_what_two_runs_cut_into_other_pieces_is_left_out_and_listed() -> None:
    """A tensor whose first dimension is not the batch gets another shape from other micro-batches, and other places."""
    key = Key(0, "output", "model.layers.0.mlp")
    reference, run = folder("a"), folder("b", legs={FREE: table({key: 1e6})})
    assert reference.trace is not None
    assert run.trace is not None
    reference.trace.shapes["output model.layers.0.mlp"] = [2, 16, 24]
    run.trace.shapes["output model.layers.0.mlp"] = [4, 8, 24]
    verdict = judge(reference, run)
    assert verdict.same is True
    assert any("other pieces" in one["why"] for one in verdict.not_judged)
    run.trace.shapes["output model.layers.0.mlp"] = [2, 16, 24]
    assert judge(reference, run).same is False


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


def test_losses_that_are_no_numbers_in_both_runs_part_nowhere() -> None:
    def rows(last: float) -> list[Row]:
        return [Row(1, 2.0, 1e-3, 1.0), Row(2, math.nan, 1e-3, math.nan), Row(3, last, 1e-3, 1.0)]

    for last, apart in ((1.5, ", 0.5 apart"), (math.nan, "")):
        runs = [folder("a", legs={}, rows=rows(1.0)), folder("b", legs={}, rows=rows(last))]
        if math.isnan(last):
            for one in runs:
                one.rows[2] = Row(3, math.nan, 1e-3, 1.0 + (one is runs[1]))
        words = judge(*runs).problems[0].found
        assert "part at step 3" in words
        assert words.endswith(apart) if apart else "apart" not in words


def test_every_setting_is_either_free_or_must_be_equal() -> None:
    pytest.importorskip("pydantic")
    from ambidex import config

    numeric = {name for name, info in config.fields().items() if config.is_numeric(info)}
    assert set(config.fields()) >= cards.FREE
    assert numeric & cards.FREE == {"compile", "fused", "micro_batch_size", "precision"}
    assert set(config.fields()) - numeric == cards.FREE - {
        "compile",
        "fused",
        "micro_batch_size",
        "precision",
    }


def test_a_run_older_than_a_setting_is_the_same_training_as_a_new_one_that_leaves_it_alone() -> None:
    pytest.importorskip("pydantic")
    from ambidex import config

    assert {name: config.fields()[name].default for name in cards.BEFORE} == cards.BEFORE
    data = {"hash": "d"}
    old, new = ({"config": {"steps": 12, **more}, "data": data} for more in ({}, cards.BEFORE))
    assert cards.why_not(old, new) == []
    assert cards.why_not(new, old) == []
    assert cards.why_not(old, {"config": {"steps": 12, "ngrams": 1, "ngram_rows": 5}, "data": data}) == []
    (problem,) = cards.why_not(old, {"config": {"steps": 12, "ngrams": 3}, "data": data})
    assert "--ngrams 3" in str(problem)
    assert "--ngrams 1" in str(problem)


def test_the_floor_is_never_below_half_a_unit_in_the_last_place() -> None:
    reference = table(floor=0.0)
    key = Key(0, "output", "lm_head")
    other = table()
    other.sums[other.row[key]] *= 1 + 2.0**-24
    assert judge(folder("a", legs={FREE: reference}), folder("b", legs={FREE: other})).same is True
    assert np.isfinite(reference.floor).all()
