"""The command line of compare: which folder is meant."""

from __future__ import annotations

import json
import os
from pathlib import Path

from test_page import written

from ambidex import cli
from ambidex.compare.command import newest


def run_at(path: Path, age: int) -> Path:
    path.mkdir(parents=True)
    (path / "card.json").write_text(json.dumps({"config": {}}))
    os.utime(path / "card.json", (1_000_000 - age, 1_000_000 - age))
    return path


def test_of_a_folder_of_runs_the_newest_is_meant_and_a_run_is_itself(tmp_path: Path) -> None:
    run_at(tmp_path / "cpu" / "nano-001", age=50)
    young = run_at(tmp_path / "cpu" / "nano-002", age=10)
    run_at(tmp_path / "cpu" / ".hidden", age=0)
    (tmp_path / "cpu" / "notes").mkdir()
    assert newest(tmp_path / "cpu") == young
    assert newest(young) == young
    assert newest(tmp_path / "none") == tmp_path / "none"
    assert newest(tmp_path / "cpu" / "notes") == tmp_path / "cpu" / "notes"


def test_without_skip_missing_a_folder_without_a_run_is_an_error(tmp_path: Path, capsys) -> None:
    run_at(tmp_path / "cpu", age=0)
    assert cli.main(["compare", str(tmp_path / "cpu"), str(tmp_path / "gpu")]) == 3
    assert "There is no run here" in capsys.readouterr().err


def test_with_skip_missing_it_is_left_out_by_name_and_two_must_be_left(tmp_path: Path, capsys) -> None:
    run_at(tmp_path / "cpu", age=0)
    assert cli.main(["compare", "--skip-missing", str(tmp_path / "cpu"), str(tmp_path / "gpu")]) == 2
    error = capsys.readouterr().err
    assert f"left out: {tmp_path / 'gpu'} holds no run" in error
    assert "Two runs are needed" in error


def test_a_run_beside_itself_is_the_same_and_the_report_says_that_it_is_one_folder(
    tmp_path: Path, capsys
) -> None:
    run = str(written(tmp_path / "run"))
    assert cli.main(["compare", run, run, "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["same"] is True
    assert pair["notes"] == ["the reference and the run are one folder"]
