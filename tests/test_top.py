"""`ambidex top`: which runs are alive, how far they are, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ambidex import cli, plan, top
from ambidex.errors import Exit
from ambidex.glance import glance, is_held, runs_in
from ambidex.rows import TAIL, read_tail, render_rows
from ambidex.runs import Run
from ambidex.settings import Settings
from test_runpage import CARD, CONFIG, row, run_at


def lines(root: Path, capsys: Any, *flags: str) -> list[str]:
    assert cli.main(["top", str(root), *flags]) == Exit.DONE
    return capsys.readouterr().out.splitlines()


def test_a_run_is_alive_while_its_lock_is_held_and_asking_does_not_take_it(tmp_path: Path) -> None:
    run = Run(run_at(tmp_path / "run", steps=4))
    assert not is_held(run.path / ".lock")
    run.lock()
    try:
        assert glance(run.path).state == "training"
        assert glance(run.path).alive
    finally:
        run.unlock()
    assert glance(run.path).state == "stopped"
    run.lock()  # nothing that looked at it still holds it
    run.unlock()


def test_each_run_is_a_line_with_step_of_steps_loss_speed_time_left_and_checkpoint(
    tmp_path: Path, capsys: Any
) -> None:
    run_at(tmp_path / "runs" / "done", steps=8)
    going = Run(run_at(tmp_path / "runs" / "cpu" / "going", steps=4))
    going.lock()
    try:
        found = lines(tmp_path / "runs", capsys)
    finally:
        going.unlock()
    assert found[0].split() == ["run", "state", "step", "loss", "tokens/s", "left", "checkpoint"]
    assert found[1].split() == [
        str(Path("cpu", "going")),
        "training",
        "4",
        "/",
        "8",
        "1.2500",
        "128",
        "2s",
        "step",
        "4",
    ]
    assert found[2].split() == ["done", "finished", "8", "/", "8", "0.6250", "128", "-", "step", "8"]
    assert found[-1].endswith("1 training")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", json.dumps({"config": {"steps": "many"}}), json.dumps({**CARD, "config": {"steps": -1}})],
)
def test_a_run_that_cannot_be_read_is_a_line_too(tmp_path: Path, capsys: Any, text: str) -> None:
    (run_at(tmp_path / "runs" / "odd") / "card.json").write_text(text)
    assert "odd" in lines(tmp_path / "runs", capsys)[1]


def test_a_name_cannot_steer_the_terminal(tmp_path: Path, capsys: Any) -> None:
    run_at(tmp_path / "runs" / "a\x1b[2J\rb")
    assert "\x1b" not in "".join(lines(tmp_path / "runs", capsys))


def test_no_folder_and_no_runs_are_said_in_words(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["top", str(tmp_path / "none")]) == Exit.DATA
    assert "There is no such folder" in capsys.readouterr().err
    assert "No runs in" in lines(tmp_path, capsys)[0]


def test_on_a_terminal_it_is_refreshed_until_ctrl_c(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_at(tmp_path / "runs" / "one")
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(top.time, "sleep", nap)
    assert cli.main(["top", str(tmp_path / "runs"), "--every", "0.5"]) == Exit.DONE
    assert naps == [0.5] * 3
    assert capsys.readouterr().out.count("one") >= 3
    assert len(lines(tmp_path / "runs", capsys, "--once")) == 4


def test_the_end_of_a_long_file_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(render_rows([row(n) for n in range(1, 2000)], header=True) + "2000,12", "utf-8")
    assert path.stat().st_size > 4 * TAIL
    found = read_tail(path)
    assert found[-1] == row(1999)
    assert 10 < len(found) < 100


def test_a_run_itself_may_be_named(tmp_path: Path, capsys: Any) -> None:
    run = run_at(tmp_path / "runs" / "one")
    assert runs_in(run) == [run]
    assert lines(run, capsys)[1].startswith("one ")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0s"), (61, "1m 01s"), (3700, "1h 01m"), (float("nan"), "-"), (1e12, "-")]
)
def test_time_left_is_spelled(seconds: float, words: str) -> None:
    assert top.spelled(seconds) == words


def test_a_run_that_is_the_folder_where_one_stands_has_its_name(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_at(tmp_path / "here"))
    assert lines(Path(), capsys)[1].startswith("here ")


@pytest.mark.parametrize("cell", ["9" * 400, "-1", "1e400", "nan"])
@pytest.mark.parametrize("column", range(8))
def test_figures_that_cannot_be_stop_neither_the_table_nor_the_page(
    tmp_path: Path, capsys: Any, cell: str, column: int
) -> None:
    run = run_at(tmp_path / "runs" / "odd", steps=4)
    cells = row(5).cells()
    cells[column] = cell
    with (run / "metrics.csv").open("a") as file:
        file.write(",".join(cells) + "\n")
    held = Run(run)
    held.lock()  # time left is worked out for a run that is trained
    try:
        assert lines(tmp_path / "runs", capsys)[1].startswith("odd ")
    finally:
        held.unlock()
    assert cli.main(["report", str(run)]) == Exit.DONE


GROWING = {"steps": 100, "layers": 10, "grow_from": 1, "grow_at": 0.9, "width": 64, "heads": 4, "kv_heads": 4,
           "feed_forward": 128, "context": 16, "batch_size": 4, "sampled_softmax": 1}  # fmt: skip


def test_time_left_counts_the_blocks_that_have_yet_to_join(tmp_path: Path) -> None:
    """At step 50 of 100 as much is left as was done only where all steps are alike; here the last ten cost more."""
    card = {**CARD, "config": {**CONFIG, **GROWING}, "data": {"hash": "abc", "vocabulary_size": 256}}
    alike = {**card, "config": {**card["config"], "grow_from": 0}}
    left = {}
    for name, said in (
        ("grows", card),
        ("alike", alike),
        ("broken", {**card, "config": {**card["config"], "width": "x"}}),
    ):
        run = Run(run_at(tmp_path / name, steps=50, card=said))
        run.lock()
        left[name] = glance(run.path).seconds_left
        run.unlock()
    settings = Settings.model_validate(card["config"])
    work = plan.Work(plan.shape_of(settings, 256), plan.growth_of(settings), 256)
    spent = 0.5 * 50
    assert left["alike"] == left["broken"] == pytest.approx(spent)
    assert left["grows"] == pytest.approx(spent * (100 * work.mean(100) / (50 * work.mean(50)) - 1), rel=1e-3)
    assert left["grows"] > 1.5 * spent


def test_a_name_that_no_folder_can_have_is_no_folder(tmp_path: Path, capsys: Any) -> None:
    assert cli.main(["top", str(tmp_path / ("n" * 300))]) == Exit.DATA
    assert "There is no such folder" in capsys.readouterr().err
