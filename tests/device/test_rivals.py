"""docs/doctor-rivals.md is about the recorded machines that there are, not about those of the day on which it was written."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_page_counts_every_case_of_the_recorded_machines_and_the_doctor_has_them_all_right() -> None:
    rivals = runpy.run_path(str(ROOT / "benchmarks" / "doctor_rivals.py"))
    cases = rivals["cases"]()
    page = (ROOT / "docs" / "doctor-rivals.md").read_text("utf-8")
    assert f"\n{len(cases)} cases: " in page, "write the page again: its first block says how"
    assert f"| ambidex doctor | {len(cases)} | {len(cases)} | 0 | 0 | 0 |" in page
    assert [rivals["doctor"](case) for case in cases] == [case.truth for case in cases]
