"""A floor that is measured again with more legs."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ambidex import launch
from ambidex.cli import main
from ambidex.compare import command, tracefile


def test_more_legs_raise_the_floor_of_every_leg_and_lower_it_nowhere(
    train: Any,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv("AMBIDEX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    copied = Path(shutil.copytree(reference, tmp_path / "run"))
    before = tracefile.read(copied / tracefile.TRACE)
    launch.measure_again(copied, 2)
    after = tracefile.read(copied / tracefile.TRACE)
    for leg, table in after.legs.items():
        old = before.legs[leg].floor
        assert np.array_equal(np.isnan(table.floor), np.isnan(old))
        known = ~np.isnan(old)
        assert (table.floor[known] >= old[known]).all()
        assert (table.floor[known] > old[known]).mean() > 0.1, leg
    assert len(after.floor_legs) == len(before.floor_legs) + 2


def test_each_reference_is_measured_again_and_the_last_run_is_not(reference: Path, tmp_path: Path) -> None:
    again: list[tuple[Path, int]] = []
    runs = [Path(shutil.copytree(reference, tmp_path / name)) for name in "abc"]
    options = argparse.Namespace(
        reference=str(runs[0]),
        runs=list(map(str, runs[1:])),
        skip_missing=False,
        json=True,
        measure_again=3,
        html=None,
    )
    command.run(options, lambda path, legs: again.append((path, legs)))
    assert again == [(runs[0], 3), (runs[1], 3)]


def test_json_stays_alone_on_standard_output(
    reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "measure_again", lambda path, legs: print("words"))
    other = shutil.copytree(reference, tmp_path / "other")
    assert main(["compare", str(reference), str(other), "--measure-again", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exit_code"] == 0
