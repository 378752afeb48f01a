"""What is printed and what tools get: the contract's keys, finite numbers, no control characters, the right exit code."""

from __future__ import annotations

import json

import pytest
from made import FREE, folder, table

from ambidex.compare import report
from ambidex.compare.judge import judge
from ambidex.compare.tracefile import Key
from ambidex.errors import Exit

SAME = judge(folder("a"), folder("b"))
DIFFERENT = judge(
    folder("a"),
    folder("b", legs={FREE: table({Key(0, "update", "model.layers.1.self_attn.q_proj.weight"): 212.0})}),
)
IMPOSSIBLE = judge(folder("a"), folder("b", card={"precision": "bf16"}))


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [([SAME], Exit.DONE), ([SAME, DIFFERENT], Exit.DIFFERENT), ([DIFFERENT, IMPOSSIBLE], Exit.USAGE)],
)
def test_the_exit_code_says_same_different_or_not_comparable(verdicts: list, code: Exit) -> None:
    assert report.exit_code(verdicts) == code


@pytest.mark.parametrize("verdict", [SAME, DIFFERENT, IMPOSSIBLE])
def test_the_json_has_the_keys_of_the_contract(verdict: object) -> None:
    found = json.loads(report.as_json([verdict]))  # type: ignore[list-item]
    assert found["schema"] == 1
    assert set(found["pairs"][0]) >= {
        "reference",
        "run",
        "kind",
        "same",
        "modes",
        "first",
        "downstream",
        "not_judged",
        "cards",
    }


def test_a_first_difference_says_where_and_how_far() -> None:
    first = json.loads(report.as_json([DIFFERENT]))["pairs"][0]["first"]
    assert (first["step"], first["stage"], first["module"], first["mode"]) == (
        0,
        "update",
        "model.layers.1.self_attn.q_proj",
        "free",
    )
    assert 150 < first["ratio"] < 280


def test_the_text_names_step_stage_module_and_ratio() -> None:
    text = report.text([DIFFERENT])
    assert "a -> b" in text
    assert "DIFFERENT at step 0, in the update of model.layers.1.self_attn.q_proj" in text
    assert "the optimizer step is at fault, not the model" in " ".join(text.split())


def test_a_ratio_without_bound_stays_json() -> None:
    broken = table()
    broken.statistics[broken.row[Key(0, "output", "model.layers.0.mlp")], 4] = 3
    text = report.as_json([judge(folder("a"), folder("b", legs={FREE: broken}))])
    assert "Infinity" not in text
    json.loads(text, parse_constant=pytest.fail)


def test_names_from_a_hostile_run_cannot_steer_the_terminal() -> None:
    evil = "model.\x1b[2Jlayers\r0"
    reference, run = table(), table()
    for one in (reference, run):
        one.keys[:] = [Key(k.step, k.kind, evil) if k.name == "model.layers.0.mlp" else k for k in one.keys]
        one.__post_init__()
    run.sums[run.row[Key(0, "output", evil)]] *= 2
    verdict = judge(
        folder("a\x1b[31m", legs={FREE: reference}),
        folder("b", legs={FREE: run}, card={"threads": "\x1b]0;x\x07"}),
    )
    text = report.text([verdict]) + report.as_json([verdict])
    assert verdict.same is False
    assert not [c for c in text if c != "\n" and not c.isprintable()]
