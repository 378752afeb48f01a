"""The command line of compare: which folder is meant."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from test_page import FAULTY, written

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


def test_a_name_that_is_too_long_is_a_sentence(tmp_path: Path, capsys) -> None:
    run = str(written(tmp_path / "run"))
    for words in ([run, "n" * 300], ["n" * 300, run]):
        assert cli.main(["compare", *words]) == 3
    assert "Traceback" not in capsys.readouterr().err


def test_a_trace_that_is_a_link_to_nothing_is_not_no_trace(tmp_path: Path, capsys) -> None:
    run = written(tmp_path / "run")
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "trace.safetensors").unlink(missing_ok=True)
    (copy / "trace.safetensors").symlink_to("nowhere")
    assert cli.main(["compare", str(run), str(copy)]) == 3
    assert "The trace cannot be read" in capsys.readouterr().err


def test_legs_fewer_than_none_are_refused(tmp_path: Path, capsys) -> None:
    run = str(written(tmp_path / "run"))
    assert cli.main(["compare", run, run, "--measure-again", "-3"]) == 2
    assert "wanted: 0 or more" in capsys.readouterr().err


def test_a_reader_who_has_enough_does_not_make_different_the_same(tmp_path: Path) -> None:
    run, other = written(tmp_path / "run"), written(tmp_path / "other", changed=FAULTY)
    command = [sys.executable, "-m", "ambidex", "compare", str(run), str(other)]
    told = subprocess.run(command, capture_output=True, check=False).returncode
    reading, writing = os.pipe()
    os.close(reading)
    assert told == 1
    assert subprocess.run(command, stdout=writing, stderr=subprocess.DEVNULL, check=False).returncode == told
    os.close(writing)
