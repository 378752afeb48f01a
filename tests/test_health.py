"""Losses that are no numbers, and losses that stand out."""

import json
import math

import pytest

from ambidex import cli, health
from ambidex.trainer import Trainer
from tiny import train_words


def test_a_loss_far_above_those_before_it_is_a_spike_and_noise_is_not():
    losses = [3.0 - 0.01 * n + 0.02 * (n % 3) for n in range(60)]
    losses[40] += 1.0
    assert health.spike_steps(list(enumerate(losses, 1))) == [41]


def test_a_lasting_rise_is_no_spike_for_ever():
    found = health.spike_steps(list(enumerate([1.0] * 40 + [2.0] * 100, 1)))
    assert found
    assert max(found) < 80


def test_no_number_is_no_spike_and_spoils_none_after_it():
    losses = [1.0] * 20 + [math.nan] * 5 + [1.0, 5.0]
    assert health.spike_steps(list(enumerate(losses, 1))) == [27]


def poisoned(monkeypatch, *steps):
    accumulate = Trainer.accumulate

    def poison(self, inputs, targets):
        loss = accumulate(self, inputs, targets)
        return math.nan if self.step + 1 in steps else loss

    monkeypatch.setattr(Trainer, "accumulate", poison)


def test_stop_ends_in_5_with_a_checkpoint_of_the_step_before_and_the_batch_recorded(
    tmp_path, story, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        poisoned(patch, 5)
        assert cli.main(train_words(story, out, steps=8)) == 5
    entry = json.loads((out / health.HEALTH).read_text())
    assert (entry["step"], entry["kind"], len(entry["sequences_start_at"])) == (5, "stopped", 4)
    assert (out / "checkpoints" / "step-000004").is_dir()
    assert "--non-finite skip" in capsys.readouterr().err
    # The same step again, now skipped; the rest is trained.
    poisoned(monkeypatch, 5)
    assert cli.main(["train", "--resume", "--out", str(out), "--non-finite", "skip"]) == 0
    rows = (out / "metrics.csv").read_text().splitlines()[1:]
    assert len(rows) == 8
    assert rows[4].split(",")[2] == "nan"
    assert "skipped at 1 step: 5" in (out / "summary.md").read_text()


def test_skipped_steps_resume_to_the_same_bits(tmp_path, story, monkeypatch):
    poisoned(monkeypatch, 4, 5)
    finals = []
    for name in ("straight", "killed"):
        out = tmp_path / name
        words = train_words(story, out, steps=8, non_finite="skip")
        if name == "killed":
            update = Trainer.update
            with monkeypatch.context() as patch:
                patch.setattr(
                    Trainer, "update", lambda self, update=update: 1 / 0 if self.step == 6 else update(self)
                )
                with pytest.raises(ZeroDivisionError):
                    cli.main(words)
            words = ["train", "--resume", "--out", str(out)]
        assert cli.main(words) == 0
        finals.append((out / "checkpoints" / "step-000008" / "model.safetensors").read_bytes())
    assert finals[0] == finals[1]


def test_too_many_in_a_row_stop_whatever_the_policy(tmp_path, story, monkeypatch):
    poisoned(monkeypatch, *range(2, 100))
    assert (
        cli.main(
            train_words(
                story, tmp_path / "run", steps=60, non_finite="skip", save_every=50, evaluate_every=50
            )
        )
        == 5
    )
