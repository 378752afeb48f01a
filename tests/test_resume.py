"""Law 2: interrupted and resumed equals uninterrupted, bit for bit. Law 3: nothing is lost."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ambidex import cli, launch
from ambidex.checkpoint import MODEL, OPTIMIZER
from ambidex.config import resolve
from ambidex.trainer import Trainer
from tiny import TINY, ambidex, flags, train_words


class KillError(BaseException):
    """Stands for a SIGKILL inside the process: no handler of the program sees it."""


def final_bits(run: Path) -> tuple[str, str]:
    last = sorted((run / "checkpoints").glob("step-*"))[-1]
    return tuple(hashlib.sha256((last / name).read_bytes()).hexdigest() for name in (MODEL, OPTIMIZER))  # type: ignore[return-value]


def train(*words: str) -> int:
    return cli.main(list(words))


@pytest.fixture(scope="module")
def short_story(tmp_path_factory: pytest.TempPathFactory, story: Path) -> Path:
    """So short that 12 steps go through it more than twice."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_bytes(story.read_bytes()[:420])
    return path


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"optimizer": "muon"},
        {"precision": "bf16"},
        {"micro_batch_size": 2, "schedule": "wsd", "kv_heads": 2},
        {"ngrams": 3, "ngram_rows": 64},
        {"grow_from": 1, "grow_at": 0.5, "optimizer": "adamw"},
        {"grow_from": 1, "grow_at": 0.25, "optimizer": "adamw"},
        {"grow_from": 1, "grow_at": 0.25, "optimizer": "muon", "sampled_softmax": 4},
    ],
    ids=["adamw", "muon", "bf16", "micro-batches", "n-grams", "growing", "grown", "grown and sampled, muon"],
)
def test_killed_and_resumed_equals_straight_through(tmp_path, short_story, monkeypatch, numbers):
    # Steps 3, 6, 9 and 12 are saved, 4, 8 and 12 evaluated; the text is 21 sequences long, so an epoch ends within
    # step 6. Killed before steps 5 (between evaluations), 8 (its evaluation is lost) and 6 (at the epoch's edge).
    settings = {"validation_fraction": 0.1, **numbers}
    assert train(*train_words(short_story, tmp_path / "straight", **settings)) == 0
    for at in (5, 6, 8):
        out = tmp_path / f"killed-{at}"
        update = Trainer.update

        def killed(self, at=at, update=update):
            if self.step + 1 == at:
                raise KillError
            return update(self)

        with monkeypatch.context() as patch, pytest.raises(KillError):
            patch.setattr(Trainer, "update", killed)
            train(*train_words(short_story, out, **settings))
        assert train("train", "--resume", "--out", str(out)) == 0
        assert final_bits(out) == final_bits(tmp_path / "straight"), f"killed at {at}"
        rows, wanted = ((p / "metrics.csv").read_text().splitlines() for p in (out, tmp_path / "straight"))
        numbers_of = [[line.split(",")[:6] for line in lines] for lines in (rows, wanted)]
        assert numbers_of[0] == numbers_of[1], (
            "metrics continue without a gap, a doubled row or a changed digit"
        )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path, short_story):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert (
            train(*train_words(short_story, tmp_path / name, steps=3, seed=seed, validation_fraction=0.1))
            == 0
        )
    assert final_bits(tmp_path / "a") == final_bits(tmp_path / "b")
    assert final_bits(tmp_path / "a") != final_bits(tmp_path / "c")


def wait_for(condition, seconds: float = 90.0) -> None:
    stop = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < stop, "it did not happen in time"
        time.sleep(0.02)


def rows_in(run: Path) -> int:
    try:
        return len((run / "metrics.csv").read_text().splitlines())
    except OSError:
        return 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (getattr(signal, "SIGHUP", 0), 129)]
)
@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_a_signal_finishes_the_step_saves_and_exits_with_its_code(tmp_path, story, number, code):
    out = tmp_path / "run"
    words = train_words(story, out, steps=4000, save_every=4000, evaluate_every=4000)
    process = subprocess.Popen(
        [sys.executable, "-m", "ambidex", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # noqa: PLW1509  under nohup it is ignored, and stays so
    )  # fmt: skip
    wait_for(lambda: rows_in(out) > 3)
    process.send_signal(number)
    printed = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, printed
    steps = rows_in(out) - 1
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"step-{steps:06d}"]
    assert "Traceback" not in printed
    assert "--resume" in printed


@pytest.mark.skipif(os.name == "nt", reason="Windows has other signals")
def test_a_killed_process_leaves_the_run_free_and_its_rows_are_trained_again(tmp_path, story):
    out = tmp_path / "run"
    words = train_words(story, out, steps=60, save_every=20, evaluate_every=60)
    process = subprocess.Popen(
        [sys.executable, "-m", "ambidex", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(lambda: rows_in(out) > 25)
    process.kill()
    process.wait()
    assert ambidex("train", "--resume", "--out", str(out)).returncode == 0
    assert (
        ambidex(
            *train_words(story, tmp_path / "straight", steps=60, save_every=20, evaluate_every=60)
        ).returncode
        == 0
    )
    assert final_bits(out) == final_bits(tmp_path / "straight")


def test_a_run_in_use_is_refused_with_exit_code_7(tmp_path, story, capsys):
    from ambidex.runs import Run

    assert train(*train_words(story, tmp_path / "run", steps=1)) == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    card["config"]["steps"] = 2  # unfinished, so that there would be something to do
    (tmp_path / "run" / "card.json").write_text(json.dumps(card))
    run = Run(tmp_path / "run")
    run.lock()
    try:
        result = ambidex("train", "--resume", "--out", str(tmp_path / "run"))
    finally:
        run.unlock()
    assert result.returncode == 7
    assert "in use" in result.stderr


def test_a_finished_run_says_so_and_exits_0(tmp_path, story, capsys):
    assert train(*train_words(story, tmp_path / "run", steps=2)) == 0
    before = final_bits(tmp_path / "run")
    assert train("train", "--resume", "--out", str(tmp_path / "run")) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    assert final_bits(tmp_path / "run") == before


def test_a_run_of_which_no_checkpoint_is_good_is_an_error_and_never_a_fresh_start(tmp_path, story, capsys):
    assert train(*train_words(story, tmp_path / "run", steps=6)) == 0
    for path in (tmp_path / "run" / "checkpoints").glob("*/model.safetensors"):
        path.write_bytes(path.read_bytes()[:-5])
    assert train("train", "--resume", "--out", str(tmp_path / "run")) == 3
    assert "No checkpoint of the run is good" in capsys.readouterr().err


def test_a_damaged_last_checkpoint_is_named_and_the_one_before_leads_to_the_same_bits(
    tmp_path, story, capsys
):
    assert train(*train_words(story, tmp_path / "run")) == 0
    wanted = final_bits(tmp_path / "run")
    damaged = tmp_path / "run" / "checkpoints" / "step-000012" / MODEL
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 4
    damaged.write_bytes(content)
    assert train("train", "--resume", "--out", str(tmp_path / "run")) == 0
    assert "skipped step-000012: model.safetensors: sha256 mismatch" in capsys.readouterr().out
    assert final_bits(tmp_path / "run") == wanted


def test_other_numbers_than_the_cards_are_refused_and_listed_all_at_once(tmp_path, story, capsys):
    assert train(*train_words(story, tmp_path / "run", steps=2)) == 0
    assert train("train", "--resume", "--out", str(tmp_path / "run"), "--layers", "3", "--steps", "9") == 2
    error = capsys.readouterr().err
    assert "--layers 3" in error
    assert "--layers 2" in error
    assert "--steps 9" in error


def test_another_text_is_refused(tmp_path, story, short_story, capsys):
    assert train(*train_words(story, tmp_path / "run", steps=2)) == 0
    assert train("train", "--resume", "--out", str(tmp_path / "run"), "--data", str(short_story)) == 2
    assert "data hash" in capsys.readouterr().err


def test_resume_without_out_continues_the_newest_unfinished_run_of_the_same_configuration(
    tmp_path, story, monkeypatch, capsys
):
    monkeypatch.setenv("AMBIDEX_RUNS", str(tmp_path / "runs"))
    words = ["train", *flags(**{**TINY, "data": [str(story)], "resume": True})]
    update = Trainer.update

    def killed(self):
        if self.step + 1 == 8:
            raise KillError
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(KillError):
        patch.setattr(Trainer, "update", killed)
        train(*words)
    assert train(*words, "--learning-rate", "1e-4") == 0  # another configuration: a run of its own
    assert train(*words) == 0  # continues the first
    assert train(*words) == 0  # which is finished now: another
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["nano-001", "nano-002", "nano-003"]
    assert (
        json.loads((tmp_path / "runs" / "nano-001" / "card.json").read_text())["resumes"][0]["from_step"] == 6
    )
    assert final_bits(tmp_path / "runs" / "nano-001") == final_bits(tmp_path / "runs" / "nano-003")


def test_a_run_folder_in_use_by_another_is_passed_over_by_resume_without_out(tmp_path, story, monkeypatch):
    from ambidex.runs import Run

    monkeypatch.setenv("AMBIDEX_RUNS", str(tmp_path / "runs"))
    words = ["train", *flags(**{**TINY, "data": [str(story)], "resume": True})]
    assert train(*words) == 0
    for path in (tmp_path / "runs" / "nano-001" / "checkpoints").glob("step-000012"):
        path.rename(path.with_name(".gone"))
    run = Run(tmp_path / "runs" / "nano-001")
    run.lock()
    try:
        result = ambidex(*words, env={**os.environ, "AMBIDEX_RUNS": str(tmp_path / "runs")})
    finally:
        run.unlock()
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "nano-002").is_dir()


def stopped_early(monkeypatch, at: int, *words: str) -> None:
    update = Trainer.update

    def killed(self):
        if self.step + 1 == at:
            raise KillError
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(KillError):
        patch.setattr(Trainer, "update", killed)
        train(*words)


def test_resume_without_out_finds_a_run_whose_card_is_older_than_a_setting(tmp_path, story, monkeypatch):
    monkeypatch.setenv("AMBIDEX_RUNS", str(tmp_path / "runs"))
    words = ["train", *flags(**{**TINY, "data": [str(story)], "resume": True, "residual_init": 1.0})]
    stopped_early(monkeypatch, 8, *words)
    path = tmp_path / "runs" / "nano-001" / "card.json"
    card = json.loads(path.read_text())
    for newer in (
        "residual_init",
        "ngrams",
        "ngram_rows",
        "grow_from",
        "grow_at",
        "sampled_softmax",
        "trace_band",
        "step_timeout",
        "collective_timeout",
        "non_finite",
    ):
        del card["config"][newer]
    path.write_text(json.dumps(card))
    assert train(*words) == 0
    assert [one.name for one in (tmp_path / "runs").iterdir()] == ["nano-001"]


def test_resume_without_out_takes_up_no_run_that_grows_for_one_that_does_not(tmp_path, story, monkeypatch):
    monkeypatch.setenv("AMBIDEX_RUNS", str(tmp_path / "runs"))
    settings = {**TINY, "data": [str(story)]}
    stopped_early(monkeypatch, 8, "train", *flags(**settings, grow_from=1))
    assert train("train", "--resume", *flags(**settings)) == 0
    assert sorted(one.name for one in (tmp_path / "runs").iterdir()) == ["nano-001", "nano-002"]
    assert train("train", "--resume", *flags(**settings, grow_from=1)) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("before", "after"),
    [('"grow_from": 1', '"grow_from": 0'), ('"grow_from": 0', '"grow_from": 1'), ('"grow_at": 0.5', '"grow_at": 0.9'),
     ('"steps": 12', '"steps": 28')],
)  # fmt: skip
def test_a_card_that_says_otherwise_which_blocks_wait_continues_nothing(
    tmp_path, story, monkeypatch, capsys, before, after
):
    out = tmp_path / "run"
    stopped_early(
        monkeypatch,
        11,
        *train_words(story, out, grow_from=int("0" not in before or "." in before), grow_at=0.5),
    )
    card = (out / "card.json").read_text()
    assert before in card
    (out / "card.json").write_text(card.replace(before, after))
    assert train("train", "--resume", "--out", str(out)) == 3
    said = capsys.readouterr().err
    assert "is not as it was" in said
    assert "remove card.json" in said


def test_a_setting_without_effect_contradicts_no_card(tmp_path, story, monkeypatch):
    out = tmp_path / "run"
    stopped_early(monkeypatch, 8, *train_words(story, out))
    words = ["train", "--resume", "--out", str(out)]
    assert train(*words, "--grow-from", "1") == 2
    assert train(*words, "--grow-at", "0.5", "--ngram-rows", "5") == 0


@pytest.mark.parametrize("late", [7, 2, None])  # of 9 steps, 3 of them with all blocks
def test_a_checkpoint_with_late_steps_that_cannot_be_is_refused(tmp_path, story, monkeypatch, capsys, late):
    out = tmp_path / "run"
    snapshot = Trainer.snapshot

    def wrong(self):
        found = snapshot(self)
        state = {name: value for name, value in found.state.items() if name != "late_steps"}
        return replace(found, state=state if late is None else {**state, "late_steps": late})

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "snapshot", wrong)
        stopped_early(patch, 11, *train_words(story, out, grow_from=1, grow_at=0.5))
    assert train("train", "--resume", "--out", str(out)) == 3
    assert f"{late} updates of the blocks that join late" in capsys.readouterr().err


def test_steps_made_of_time_are_the_cards_whatever_a_file_says(tmp_path, story, monkeypatch, capsys):
    file, out = tmp_path / "mine.toml", tmp_path / "run"
    file.write_text("steps = 500\n")
    given = {name: value for name, value in TINY.items() if name != "steps"}
    words = ["train", str(file), *flags(**given, data=[str(story)], out=str(out), time="2s")]
    stopped_early(monkeypatch, 5, *words)  # after the four trial steps
    steps = json.loads((out / "card.json").read_text())["config"]["steps"]
    assert train(*words, "--resume") == 0
    assert rows_in(out) == 1 + steps
    capsys.readouterr()
    assert cli.main(["train", "--resume", "--out", str(out), "--steps", "100000"]) == 2  # typed is meant
    assert "--steps 100000" in capsys.readouterr().err


@pytest.mark.parametrize("left", [b"", b'{"kind"', None], ids=["empty", "half", "missing"])
def test_a_kill_between_the_card_and_the_tokenizer_leaves_a_run_that_can_be_sampled(
    tmp_path, story, monkeypatch, left, capsys
):
    out = tmp_path / "run"
    stopped_early(monkeypatch, 1, *train_words(story, out))
    (out / "tokenizer.json").unlink()
    if left is not None:
        (out / "tokenizer.json").write_bytes(left)
    assert train("train", "--resume", "--out", str(out)) == 0
    assert train("sample", str(out), "--tokens", "3") == 0


@pytest.mark.parametrize("changes", [
    {"heads": 5}, {"kv_heads": 3, "heads": 4}, {"micro_batch_size": 3}, {"width": 33, "heads": 11},
])  # fmt: skip
def test_a_card_whose_settings_cannot_go_together_is_a_sentence(
    tmp_path, story, monkeypatch, capsys, changes
):
    out = tmp_path / "run"
    stopped_early(monkeypatch, 2, *train_words(story, out))
    card = json.loads((out / "card.json").read_text())
    card["config"].update(changes)
    (out / "card.json").write_text(json.dumps(card))
    assert train("train", "--resume", "--out", str(out)) == 3
    assert "in card.json" in capsys.readouterr().err


def test_a_precision_on_the_card_that_there_is_not_is_a_sentence(tmp_path, story, monkeypatch, capsys):
    out = tmp_path / "run"
    stopped_early(monkeypatch, 2, *train_words(story, out))
    card = json.loads((out / "card.json").read_text())
    (out / "card.json").write_text(json.dumps({**card, "precision": "fp12"}))
    assert train("train", "--resume", "--out", str(out)) == 3
    assert "fp12" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_run_that_another_process_began_meanwhile_is_not_trained_over(
    tmp_path, story, capsys, monkeypatch, flags
):
    """Between looking at --out and locking it lies all the preparation: the other may have come to its end by then."""
    out, build = tmp_path / "run", launch.build

    def overtaken(*words, **named):
        monkeypatch.setattr(launch, "build", build)
        assert train(*train_words(story, out, steps=3)) == 0
        return build(*words, **named)

    monkeypatch.setattr(launch, "build", overtaken)
    capsys.readouterr()
    assert train(*train_words(story, out, steps=5, seed=9), *flags) == 7
    said = capsys.readouterr()
    assert "Another process has begun a run here" in said.err
    assert json.loads((out / "card.json").read_text())["config"]["seed"] == 0
    assert rows_in(out) == 1 + 3  # with the header


def test_a_text_that_a_card_names_from_elsewhere_is_asked_for(tmp_path, story, capsys, monkeypatch):
    monkeypatch.chdir(story.parent)
    words = train_words(story, tmp_path / "run", steps=2)
    assert train(*[story.name if word == str(story) else word for word in words]) == 0
    (tmp_path / "run" / "checkpoints" / "step-000002" / MODEL).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert train("train", "--resume", "--out", "run") == 3
    assert "in the folder where the run was begun, or add --data PATH" in capsys.readouterr().err


def test_a_card_with_a_setting_that_cannot_be_names_it(tmp_path, story, capsys):
    assert train(*train_words(story, tmp_path / "run", steps=1)) == 0
    card = json.loads((tmp_path / "run" / "card.json").read_text())
    card["config"]["steps"] = 10**12
    (tmp_path / "run" / "card.json").write_text(json.dumps(card))
    assert train("train", "--resume", "--out", str(tmp_path / "run")) == 3
    assert "found: steps: Input should be less than" in capsys.readouterr().err


def test_a_time_without_an_end_becomes_no_more_steps_than_a_run_may_have():
    """A card with more could not be read again: the run would be lost."""
    steps = launch.most_steps(lambda steps: 0.0, 1.0)
    assert resolve({"steps": steps}, environment={}).settings.steps == steps


def test_where_there_is_nothing_to_resume_the_run_is_said_to_be_new(tmp_path, story, capsys):
    words = train_words(story, tmp_path / "run", steps=1)
    assert train(*words, "--resume") == 0
    assert "a new run: there was none to resume" in capsys.readouterr().out
    assert train(*words[:-2], "--out", str(tmp_path / "other")) == 0
    assert "none to resume" not in capsys.readouterr().out
