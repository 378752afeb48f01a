"""Green means run: what tox and pytest wrote down is read, and what is missing is a complaint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import all_ran
import pytest
import ran

GOOD: dict[str, Any] = {
    "result": {"success": True, "exit_code": 0, "duration": 1.0, "skipped": False},
    "test": [{"retcode": 0, "command": ["true"], "output": ""}],
}
PROVED = "proved py311-cpu: torch 2.13.0+cpu, no CUDA\n"


def result(**changes: object) -> dict[str, Any]:
    return {"testenvs": {"lint": GOOD, "cpu": {**GOOD, **changes}, "later": {}}}


def outcomes_of(**outcomes: str) -> dict[str, Any]:
    """`a_gpu="skipped"`: a test of this name and outcome, marked gpu by its name."""
    return {
        name: {
            "outcome": outcome,
            "markers": ["gpu"] if name.endswith("gpu") else [],
            "reason": "no GPU here",
        }
        for name, outcome in outcomes.items()
    }


def reported(path: Path, **outcomes: str) -> dict[str, Any]:
    """The result of an environment whose pytest wrote this report."""
    path.write_text(json.dumps({"tests": outcomes_of(**outcomes), "deselected": {"x": ["slow"]}}), "utf-8")
    return result(test=[{"retcode": 0, "output": "", "command": ["pytest", "--ran", str(path)]}])


def test_a_run_in_which_everything_required_passed_has_no_complaint() -> None:
    assert ran.complaints(result(), ["lint", "cpu"]) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"result": {"success": False, "skipped": True}}, "was skipped"),
        ({"skipped": True}, "was skipped"),
        ({"result": {"success": False}}, "failed"),
        ({"test": []}, "ran no command"),
    ],
)
def test_a_required_environment_that_was_skipped_failed_or_ran_nothing_is_a_complaint(
    changes: dict[str, Any], said: str
) -> None:
    assert ran.complaints(result(**changes), ["lint", "cpu"]) == [f"cpu: {said}"]


@pytest.mark.parametrize("name", ["gone", "later"])
def test_a_required_environment_that_never_started_is_a_complaint(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tox.json"
    file.write_text(json.dumps(result()), "utf-8")
    assert ran.main([str(file), "lint", "cpu"]) == 0
    assert ran.main([str(file), "lint", "cpu", name]) == 1
    assert f"error: {name}: never started" in capsys.readouterr().err


def test_no_result_at_all_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran.main([str(tmp_path / "tox.json"), "lint"]) == 1
    assert "tox left no result" in capsys.readouterr().err


def test_an_environment_named_for_a_build_has_to_have_proved_it() -> None:
    silent = {"testenvs": {"py311-cpu": GOOD}}
    assert ran.complaints(silent, ["py311-cpu"]) == ["py311-cpu: did not prove which build it tests"]
    said = {"testenvs": {"py311-cpu": {**GOOD, "test": [{"command": ["python"], "output": PROVED}]}}}
    assert ran.complaints(said, ["py311-cpu"]) == []
    assert "| torch 2.13.0+cpu, no CUDA |" in ran.summary(said, ["py311-cpu"])


@pytest.mark.parametrize(
    ("outcomes", "complaint"),
    [
        ({"a": "passed", "b": "skipped"}, None),
        ({"a": "skipped"}, "holds no test that passed"),
        ({}, "holds no test that passed"),
        ({"a_gpu": "skipped"}, None),
    ],
)
def test_a_test_run_in_which_nothing_passed_is_a_complaint_unless_all_of_it_wants_a_gpu(
    outcomes: dict[str, str], complaint: str | None, tmp_path: Path
) -> None:
    found = ran.complaints(reported(tmp_path / "ran.json", **outcomes), ["cpu"])
    assert found == ([f"cpu: ran.json {complaint}"] if complaint else [])


def test_a_report_that_was_not_written_is_a_complaint(tmp_path: Path) -> None:
    lost = reported(tmp_path / "ran.json", a="passed")
    (tmp_path / "ran.json").unlink()
    assert ran.complaints(lost, ["cpu"]) == ["cpu: ran.json was to be written by pytest and was not"]


@pytest.mark.parametrize(
    ("outcomes", "complaint"),
    [
        ({"a_gpu": "passed"}, None),
        ({"a_gpu": "passed", "b_gpu": "skipped"}, "1 passed, 1 skipped"),
        ({"a_gpu": "skipped"}, "1 skipped"),
        ({"a": "passed"}, "none ran"),
    ],
)
def test_a_required_marker_has_to_have_passed_in_whole(
    outcomes: dict[str, str], complaint: str | None, tmp_path: Path
) -> None:
    found = ran.marker_complaints(reported(tmp_path / "ran.json", **outcomes), ["cpu"], ["gpu"])
    assert found == ([f"tests marked gpu: {complaint}; all have to pass"] if complaint else [])


def test_what_tox_skipped_is_no_success_in_the_summary() -> None:
    skipped = result(result={"success": True, "skipped": True})
    assert "| cpu | skipped |" in ran.summary(skipped, ["cpu"])


def test_the_summary_says_what_did_not_run_and_why(tmp_path: Path) -> None:
    said = ran.summary(reported(tmp_path / "ran.json", a="passed", b="skipped"), ["lint", "cpu"])
    assert "| cpu | ok | 1 | 1 passed, 1 skipped |" in said
    assert "- cpu: 1 skipped: no GPU here" in said
    assert "- cpu: 1 marked slow, not picked" in said
    assert "- not asked for, and so not run: later" in said


# -- what the plugin writes ----------------------------------------------------------------------------------------------

SUITE = """
import pytest

def test_passes(): pass

@pytest.mark.gpu
def test_on_a_gpu(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.mark.skip(reason="not here")
def test_skipped(): pass

@pytest.mark.xfail(reason="known")
def test_known(): assert 0

def test_fails(): assert 0
"""


@pytest.mark.parametrize("workers", [[], ["-n", "2"]])
def test_the_report_holds_every_test_with_its_markers_and_reasons(workers: list[str], tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["ran_report"]\n', "utf-8")
    (tmp_path / "test_suite.py").write_text(SUITE, "utf-8")
    (tmp_path / "pytest.ini").write_text(
        f"[pytest]\npythonpath = {Path(__file__).parents[1]}\nmarkers =\n  gpu\n  slow\n", "utf-8"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "--ran", "out/ran.json", *workers]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads((tmp_path / "out/ran.json").read_text("utf-8"))
    by_name = {name.split("::")[1]: test for name, test in report["tests"].items()}
    assert by_name.pop("test_fails")["outcome"] == "failed"
    assert by_name == {
        "test_passes": {"outcome": "passed", "markers": []},
        "test_on_a_gpu": {"outcome": "passed", "markers": ["gpu"]},
        "test_skipped": {"outcome": "skipped", "markers": [], "reason": "not here"},
        "test_known": {"outcome": "skipped", "markers": [], "reason": "fails as expected: known"},
    }
    assert report["deselected"] == {"test_suite.py::test_slow": ["slow"]}


# -- all the jobs of a matrix --------------------------------------------------------------------------------------------


def row(name: str, *, required: bool = True) -> dict[str, Any]:
    return {"name": f"{name} on linux", "environment": name, "required": required}


def test_every_job_of_the_list_has_to_have_left_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lint on linux").mkdir()
    (tmp_path / "lint on linux/tox.json").write_text(json.dumps({"testenvs": {"lint": GOOD}}), "utf-8")
    monkeypatch.setenv("NOT_RUN", "on a GPU: no machine")
    assert all_ran.main(tmp_path, [row("lint"), row("floats", required=False)]) == 0
    said = capsys.readouterr().out
    assert "| floats on linux | not ok, and need not be" in said
    assert "| on a GPU | not run | 0 | no machine |" in said
    assert all_ran.main(tmp_path, [row("lint"), row("types")]) == 1
    assert "error: types on linux: never started" in capsys.readouterr().err
    assert all_ran.main(tmp_path, []) == 1
