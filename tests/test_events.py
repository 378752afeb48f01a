"""TensorBoard beside metrics.csv: it follows where the package is there, and never stops a training where it is not."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from ambidex import cli
from ambidex.runs import Run
from tiny import train_words


def test_without_the_package_one_line_says_what_to_type_and_training_goes_on(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorboard" else find(name, *more)
    )
    run = Run(tmp_path / "run")
    assert cli.main([*train_words(story, run.path), "--tensorboard"]) == 0
    assert 'pip install "ambidex[tensorboard]"' in capsys.readouterr().out
    assert not (run.path / "tensorboard").exists()
    assert len(run.metrics) == 12


def test_every_row_of_metrics_becomes_events_and_a_resume_hides_what_it_repeats(
    story: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path / "run")
    words = [*train_words(story, run.path), "--tensorboard"]
    assert cli.main(words) == 0
    import shutil

    shutil.rmtree(run.checkpoints / "step-000012")  # as after a kill in its last steps
    assert cli.main([*words, "--resume"]) == 0
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(row.step, pytest.approx(row.loss, rel=1e-6)) for row in run.metrics]
    assert [event.step for event in events.Scalars("val_loss")] == [4, 8, 12]
