"""`ambidex bench --to-loss`: what a round measures, what is said of it, and what a wrong call is told."""

import json
import subprocess
import sys

import pytest

from ambidex import cli, config, plain, race
from ambidex.errors import Exit, Problems

TEXT = "To be, or not to be, that is the question.\n" * 60


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return str(path)


def test_the_plain_loop_learns_and_measures_the_held_out_part():
    few, more = (plain.train(TEXT, steps, seed=0, threads=1) for steps in (1, 40))
    assert more["val_loss"] < few["val_loss"]
    assert len(more["loss"]) == 40
    assert more["tokens"] == 40 * plain.BATCH * plain.CONTEXT


def test_the_plain_rate_rises_and_falls_as_the_recipe_says():
    rates = [plain.rate(step, plain.STEPS) for step in range(plain.STEPS)]
    assert max(rates) == rates[plain.WARM_UP] == plain.PEAK
    assert rates[-1] == pytest.approx(plain.LAST, rel=1e-2)


def test_a_lap_of_ours_is_a_whole_training_and_ends_when_its_loss_is_known(monkeypatch, text):
    short = [
        "--steps",
        "2",
        "--layers",
        "1",
        "--width",
        "16",
        "--heads",
        "2",
        "--kv-heads",
        "2",
        "--feed-forward",
        "16",
    ]
    start = race.child
    monkeypatch.setattr(race, "child", lambda module: start([*module, *short, "--evaluate-every", "2"]))
    lap = race.our_lap("quick", 2, text, seed=3)
    preset = config.resolve({"preset": "quick"}, environment={}).settings
    assert lap.tokens == 2 * preset.batch_size * preset.context
    assert 0 < lap.val_loss < 10
    assert 0 < lap.seconds < lap.until_prompt


def test_a_race_says_who_won_and_how_often_the_loss_was_reached(monkeypatch, text, capsys):
    monkeypatch.setattr(
        race, "our_lap", lambda preset, steps, data, seed: race.Lap(seed, 1.8 + seed / 10, 8.0, 9.0, 100)
    )
    monkeypatch.setattr(race, "plain_lap", lambda data, seed: race.Lap(seed, 1.88, 80.0, 80.0, 1000))
    assert cli.main(["bench", "--to-loss", "1.88", "--data", text, "--rounds", "3"]) == Exit.DONE
    printed = capsys.readouterr().out
    assert "10.0%" in printed
    assert "in 1 of 3 rounds" in printed
    cli.main(["bench", "--to-loss", "1.88", "--data", text, "--rounds", "2", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["ratio"] == 10
    assert report["reached"] == 1
    assert report["steps"] == config.resolve({"preset": "quick"}).settings.steps


@pytest.mark.parametrize("wrong", [["--to-loss", "1.88"], ["--to-loss", "1.88", "--data", "nowhere.txt"],
                                   ["--to-loss", "-1", "--data", "x"], ["--rounds", "0"]])  # fmt: skip
def test_a_wrong_call_gets_a_sentence(wrong, capsys):
    assert cli.main(["bench", *wrong]) in (Exit.USAGE, Exit.DATA)
    assert "Traceback" not in capsys.readouterr().err


def test_a_contestant_that_fails_is_named_with_what_to_type():
    with pytest.raises(Problems, match="did not finish"):
        race.child(["ambidex", "train", "--steps", "-1"])


def test_the_plain_loop_is_one_line_of_json(text):
    done = subprocess.run([sys.executable, "-m", "ambidex.plain", "--data", text, "--steps", "1", "--threads", "1"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert set(json.loads(done.stdout)) == {"val_loss", "import_seconds", "seconds", "tokens", "loss"}


def test_a_contestant_that_says_itself_what_to_do_says_it_once(tmp_path):
    (tmp_path / "mark.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(Problems) as raised:
        race.child(["ambidex", "train", "--data", str(tmp_path / "mark.txt")])
    assert str(raised.value).count("  do: ") == 1
