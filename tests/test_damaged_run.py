"""A run folder with something broken in it besides a checkpoint: named, mended where it can be, and never a fresh start."""

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from ambidex import checkpoint, cli, commands, glance, health
from ambidex.launch import MOST_RESUMES
from ambidex.rows import MOST_WRONG, read_metrics
from tiny import train_words

STEPS = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, story: Path) -> Path:
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIDEX_CACHE", str(place / "cache"))
        assert cli.main(train_words(story, place / "run", steps=STEPS, save_every=2)) == 0
    return place / "run"


@pytest.fixture
def done(trained, tmp_path):
    """A finished run of its own."""
    return shutil.copytree(trained, tmp_path / "runs" / "done")


@pytest.fixture
def half(done):
    """One that was killed after step 4 was saved, and before step 6 was."""
    shutil.rmtree(done / "checkpoints" / "step-000006")
    (done / "summary.md").unlink()
    return done.rename(done.with_name("half"))


def bits(run):
    last = run / "checkpoints" / f"step-{STEPS:06d}"
    return [
        hashlib.sha256((last / name).read_bytes()).hexdigest()
        for name in (checkpoint.MODEL, checkpoint.OPTIMIZER)
    ]


def resume(run):
    return cli.main(["train", "--resume", "--out", str(run)])


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -- the card --------------------------------------------------------------------------------------------------------


def spoiled_cards():
    return {
        "empty": lambda card: card.write_bytes(b""),
        "cut": lambda card: card.write_bytes(card.read_bytes()[:100]),
        "deep": lambda card: card.write_bytes(b"[" * 100_000),
        "impossible": lambda card: changed(card, lambda c: c["config"].update(width="x")),
        "a folder": lambda card: (card.unlink(), card.mkdir()),
    }


def test_a_card_that_is_gone_is_written_again_from_a_checkpoint(trained, half, capsys):
    before = json.loads((half / "card.json").read_text())
    (half / "card.json").unlink()
    assert cli.main(["sample", str(half), "--tokens", "1"]) == 3
    assert resume(half) == 0
    assert "written again from step-000004" in capsys.readouterr().out
    after = json.loads((half / "card.json").read_text())
    assert {name: after[name] for name in ("config", "data", "weights_sha256")} == {
        name: before[name] for name in ("config", "data", "weights_sha256")
    }
    assert bits(half) == bits(trained)


@pytest.mark.parametrize("how", spoiled_cards())
def test_a_card_that_cannot_be_read_is_an_error_that_says_how_to_replace_it(half, capsys, how):
    spoiled_cards()[how](half / "card.json")
    rows = (half / "metrics.csv").read_bytes()
    for words in (
        ["sample", str(half)],
        ["checkpoints", str(half)],
        ["train", "--resume", "--out", str(half)],
    ):
        assert cli.main(words) == 3
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"remove {half / 'card.json'}: --resume writes it again from step-000004" in said
    assert (half / "metrics.csv").read_bytes() == rows


def test_a_card_that_is_gone_with_no_copy_of_it_anywhere_is_an_error(half, capsys):
    (half / "card.json").unlink()
    for folder in (half / "checkpoints").iterdir():
        (folder / "state.json").write_bytes(b"{}")
    assert resume(half) == 3
    assert "The run's card is gone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"), [("learning_rate", 0.5), ("seed", 5), ("weight_decay", 0.0), ("precision", None)]
)
def test_a_card_whose_numbers_are_not_the_checkpoints_continues_nothing(half, capsys, name, value):
    def spoil(card):
        if name == "precision":  # the other one than this CPU's
            card[name] = "fp32" if card[name] == "bf16" else "bf16"
        else:
            card["config"][name] = value

    changed(half / "card.json", spoil)
    assert resume(half) == 3
    said = capsys.readouterr().err
    assert name in said
    assert "--resume writes it again" in said
    (half / "card.json").unlink()  # what it says one should do
    assert resume(half) == 0


def test_a_card_does_not_grow_for_ever(half):
    changed(
        half / "card.json",
        lambda card: card.update(resumes=[{"from_step": n} for n in range(3 * MOST_RESUMES)]),
    )
    assert resume(half) == 0
    resumes = json.loads((half / "card.json").read_text())["resumes"]
    assert len(resumes) == MOST_RESUMES
    assert resumes[-1]["from_step"] == 4


def test_a_run_whose_card_cannot_be_read_is_named_before_another_is_begun(half, story, monkeypatch, capsys):
    monkeypatch.setenv("AMBIDEX_RUNS", str(half.parent))
    (half / "card.json").write_bytes(b"\0")
    words = train_words(story, Path("none"), steps=STEPS, save_every=2)
    at = words.index("--out")
    assert cli.main([*words[:at], *words[at + 2 :], "--resume"]) == 0
    assert f"passed over {half}" in capsys.readouterr().out


def test_a_run_whose_last_checkpoint_is_damaged_is_not_finished(done, story, monkeypatch):
    monkeypatch.setenv("AMBIDEX_RUNS", str(done.parent))
    wanted = bits(done)
    path = done / "checkpoints" / "step-000006" / checkpoint.MODEL
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    words = train_words(story, Path("none"), steps=STEPS, save_every=2)
    at = words.index("--out")
    assert cli.main([*words[:at], *words[at + 2 :], "--resume"]) == 0
    assert [path.name for path in done.parent.iterdir()] == ["done"]
    assert bits(done) == wanted


# -- the checkpoints' folder -------------------------------------------------------------------------------------------


def test_checkpoints_that_are_gone_or_cannot_be_listed_are_an_error_and_rows_stay(half, capsys):
    rows = (half / "metrics.csv").read_bytes()
    (half / "checkpoints").rename(half / "elsewhere")
    assert resume(half) == 3
    assert "The run's checkpoints are gone" in capsys.readouterr().err
    (half / "checkpoints").symlink_to("not-mounted")
    assert resume(half) == 3
    (half / "checkpoints").unlink()
    (half / "checkpoints").write_text("a file")
    assert resume(half) == 3
    assert "cannot be listed" in capsys.readouterr().err
    assert (half / "metrics.csv").read_bytes() == rows


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(trained, half):
    shutil.rmtree(half / "checkpoints")
    lines = (half / "metrics.csv").read_text().splitlines(keepends=True)
    (half / "metrics.csv").write_text("".join(lines[:4]))
    assert resume(half) == 0
    assert bits(half) == bits(trained)


def test_what_else_lies_among_the_checkpoints_is_neither_taken_nor_counted_nor_followed(
    trained, half, tmp_path
):
    folder, elsewhere = half / "checkpoints", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").write_text("x")
    for name in ("step-abc", "step-", "step-000001", "step-999999999999", "step-0000004", "step-٠٠٠٠٠٤"):
        (folder / name).mkdir()
    (folder / "step-000005").write_text("a file")
    (folder / "step-000006").symlink_to("nowhere")  # where the last one is to be
    (folder / ".step-000007.1").symlink_to(elsewhere)
    (folder / ".step-000008.deleted").write_text("a file")
    (folder / "step-000007").symlink_to("step-000007")
    assert checkpoint.steps_in(folder) == [1, 2, 4, 7, 999_999_999_999]
    changed(half / "card.json", lambda card: card["config"].update(keep=1))
    assert resume(half) == 0
    assert bits(half) == bits(trained)
    assert (elsewhere / "kept").exists()
    assert not list(folder.glob(".*"))
    assert not (folder / "step-000006").is_symlink()


# -- the rows ----------------------------------------------------------------------------------------------------------


def test_a_damaged_row_costs_no_other_and_is_named(done, capsys):
    wanted = (done / "metrics.csv").read_bytes()
    lines = wanted.splitlines(keepends=True)
    spoiled = b"".join([*lines[:3], lines[3].replace(b",", b"\xff", 1), *lines[4:]])
    (done / "metrics.csv").write_bytes(spoiled)
    assert [row.step for row in read_metrics(done / "metrics.csv")] == [1, 2, 4, 5, 6]
    assert resume(done) == 0
    assert "metrics.csv lacks 1 of the 6 rows up to step 6" in capsys.readouterr().out
    assert (done / "metrics-damaged.csv").read_bytes() == spoiled
    assert (done / "metrics.csv").read_bytes() == b"".join([*lines[:3], *lines[4:]])


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: (path.unlink(), path.mkdir()), lambda path: path.write_bytes(os.urandom(9000)),
                                   lambda path: (path.unlink(), os.mkfifo(path))], ids=["gone", "folder", "noise", "pipe"])  # fmt: skip
def test_rows_that_are_all_gone_cost_no_step(trained, half, capsys, spoil):
    spoil(half / "metrics.csv")
    assert resume(half) == 0
    assert "lacks 4 of the 4 rows" in capsys.readouterr().out
    assert bits(half) == bits(trained)
    assert [row.step for row in read_metrics(half / "metrics.csv")] == [5, 6]


@pytest.mark.parametrize("name", ["metrics.csv", health.HEALTH])
@pytest.mark.parametrize("there", [True, False])
def test_no_row_is_written_through_a_link(half, tmp_path, name, there):
    target = tmp_path / "precious"
    if there:
        target.write_text("precious\n")
    (half / name).unlink(missing_ok=True)
    (half / name).symlink_to(target)
    assert resume(half) == 0
    assert (target.read_text() if there else target.exists()) == ("precious\n" if there else False)
    assert not (half / name).is_symlink()


def test_a_file_of_nothing_but_lines_is_not_read_for_ever(tmp_path):
    path = tmp_path / "metrics.csv"
    with path.open("wb") as file:
        file.write(b"\n" * (MOST_WRONG + 2))
        file.write(b"1,64,2.0,,0.1,1.0,0.5,100.0\n")
        file.truncate(1 << 29)
    assert read_metrics(path) == []


# -- what is left to write, and who looks ------------------------------------------------------------------------------


def test_a_run_killed_after_its_last_checkpoint_gets_its_plot_and_its_summary(done):
    for name in ("loss.png", "summary.md"):
        (done / name).unlink()
    assert resume(done) == 0
    assert (done / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "peak memory | not known here" in (done / "summary.md").read_text()


def test_pipes_and_numbers_that_are_none_do_not_stop_a_report(done, capsys):
    for path in (done / "samples.md", done / "checkpoints" / "step-000002" / "manifest.json"):
        path.unlink()
        os.mkfifo(path)
    for spelled in ("NaN", "Infinity", "1e999", '"x"', "9" * 5000):
        manifest = done / "checkpoints" / "step-000004" / "manifest.json"
        manifest.write_text('{"files": {"model.safetensors": {"size": %s}}}' % spelled)
        assert glance.saved(done / "checkpoints")[1].wrong == "manifest.json: cannot be understood"
    assert cli.main(["report", str(done)]) == 0
    assert cli.main(["top", str(done), "--once"]) == 0


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EIO, 3), (errno.EACCES, 3), (errno.EROFS, 4), (errno.ENOSPC, 4)]
)
def test_an_error_of_the_disk_that_nobody_foresaw_is_a_sentence(monkeypatch, capsys, number, code):
    def failing(_):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setitem(commands.FUNCTIONS, "top", failing)
    assert cli.main(["top"]) == code
    assert "some/file" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train", "--resume", "--out"], ["sample", "--tokens", "2"]])
def test_a_flipped_bit_that_changes_a_shape_blames_the_card_and_not_the_checkpoints(half, capsys, words):
    changed(half / "card.json", lambda card: card["config"].update(layers=card["config"]["layers"] + 1))
    assert cli.main([*words, str(half)]) == 3
    said = capsys.readouterr().err
    assert "card.json is not as it was" in said
    assert "do: remove card.json" in said


def test_saving_more_often_from_now_on_does_not_make_checkpoints_gone_that_were_never_due(half):
    shutil.rmtree(half / "checkpoints")
    changed(half / "card.json", lambda card: card["config"].update(save_every=STEPS))
    assert cli.main(["train", "--resume", "--out", str(half), "--save-every", "1"]) == 0


def test_saving_less_often_from_now_on_does_not_hide_that_checkpoints_are_gone(half, capsys):
    shutil.rmtree(half / "checkpoints")
    changed(half / "card.json", lambda card: card["config"].update(save_every=1))
    assert cli.main(["train", "--resume", "--out", str(half), "--save-every", "100"]) == 3
    assert "checkpoints are gone" in capsys.readouterr().err


def test_sample_does_not_send_to_a_resume_that_would_be_refused(done, capsys):
    shutil.rmtree(done / "checkpoints")
    assert cli.main(["sample", str(done), "--tokens", "2"]) == 3
    said = capsys.readouterr().err
    assert "checkpoints are gone" in said
    assert "--resume" not in said


def test_a_finished_run_gets_its_tokenizer_back_and_sample_says_how(done, capsys):
    before = (done / "tokenizer.json").read_bytes()
    (done / "tokenizer.json").unlink()
    assert cli.main(["sample", str(done), "--tokens", "2"]) == 3
    assert "ambidex train --resume" in capsys.readouterr().err
    assert resume(done) == 0
    assert (done / "tokenizer.json").read_bytes() == before
