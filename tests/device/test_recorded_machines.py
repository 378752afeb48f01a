"""Every recorded machine is judged as it really is, and gets the fix that the design's order gives it."""

from __future__ import annotations

from typing import Any

import pytest
from recorded_machines import ROWS, extensions_of, machine_of, probe_of

from ambidex.device import rules
from ambidex.device.diagnosis import Diagnosis, Fix


def judged(row: dict[str, Any]) -> Diagnosis:
    return rules.judge(machine_of(row), extensions=extensions_of(row), probe=probe_of(row), strict=True)


def in_words(fix: Fix) -> str:
    """``"2.15.0+cu130 driver 580"``, as the table writes a fix."""
    torch = [name.removeprefix("torch==") for name in fix.installs if name.startswith("torch==")]
    return " ".join(torch + [f"{what} {version}" for what, version in fix.requires.items()])


@pytest.mark.parametrize("row", ROWS, ids=[row["says"] for row in ROWS])
def test_a_recorded_machine_is_judged_as_it_is(row: dict[str, Any]) -> None:
    found = judged(row)
    fixes = [in_words(fix) for fix in found.fixes] + ["", ""]
    said = {
        "verdict": found.verdict,
        "cause": found.cause.id,
        "exit": found.exit_code,
        "fix": fixes[0],
        "then": fixes[1] if fixes[0] else "",
    }
    wanted = {key: row.get(key, "") for key in ("verdict", "cause", "exit", "fix", "then")}
    assert said == wanted, f"{row['source']}: {found.cause.text}"


@pytest.mark.parametrize("row", [row for row in ROWS if "each" in row], ids=lambda row: str(row["says"]))
def test_each_of_several_gpus_has_its_own_verdict(row: dict[str, Any]) -> None:
    found = judged(row)
    assert [gpu.verdict.kind for gpu in found.gpus] == row["each"]
    assert [gpu.index for gpu in found.usable] == [n for n, kind in enumerate(row["each"]) if kind != "none"]


@pytest.mark.parametrize("row", [row for row in ROWS if "also" in row], ids=lambda row: str(row["says"]))
def test_what_else_holds_stands_under_also(row: dict[str, Any]) -> None:
    assert [cause.id for cause in judged(row).also] == row["also"]


def test_where_no_build_serves_all_gpus_the_one_that_works_is_shown_alone() -> None:
    row = next(row for row in ROWS if "show" in row)
    assert f"CUDA_VISIBLE_DEVICES={row['show']}" in judged(row).fixes[0].commands[0]


def test_there_are_at_least_eighty_and_each_has_its_source() -> None:
    assert len(ROWS) >= 80
    assert all(row["source"] and row["says"] for row in ROWS)
    assert len({row["says"] for row in ROWS}) == len(ROWS)
