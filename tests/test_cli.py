import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ambidex import cli, synonyms
from ambidex.flags import train_flags
from ambidex.parsers import COMMANDS
from ambidex.rows import read_metrics
from ambidex.settings import fields
from tiny import train_words


def test_importing_the_package_and_its_command_line_imports_no_torch():
    code = "import sys, ambidex, ambidex.cli; assert not {'torch', 'numpy', 'pydantic'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_a_word_it_says_what_there_is(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"ambidex {name}" in out for name in COMMANDS)


def test_an_unknown_command_is_answered_with_a_near_one(capsys):
    assert cli.main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_a_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert "usage: ambidex" in capsys.readouterr().out


def test_every_setting_is_a_flag_of_train(capsys):
    from ambidex import config

    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(config.flag(name) in out for name in config.fields())


def test_presets_lists_and_prints(capsys):
    assert cli.main(["presets"]) == 0
    assert "nano" in capsys.readouterr().out
    assert cli.main(["presets", "mini"]) == 0
    assert "layers = 6" in capsys.readouterr().out
    assert cli.main(["presets", "minni"]) == 2
    assert "did you mean 'mini'" in capsys.readouterr().err


def test_python_dash_m_is_the_same_command():
    found = subprocess.run(
        [sys.executable, "-m", "ambidex", "--version"], capture_output=True, text=True, check=True
    )
    assert found.stdout.startswith("ambidex ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("buffered", ["", "1"])
def test_an_output_that_cannot_be_written_is_a_sentence_and_exit_4(buffered):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "ambidex", "presets"], stdout=full, stderr=subprocess.PIPE, text=True,
                              check=False, env={**os.environ, "PYTHONUNBUFFERED": buffered})  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.startswith("error: The output cannot be written.")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("buffered", ["", "1"])
def test_a_reader_that_has_enough_is_no_error(buffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "ambidex", "presets"], stdout=writer, stderr=subprocess.PIPE, text=True,
                          check=False, env={**os.environ, "PYTHONUNBUFFERED": buffered})  # fmt: skip
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name == "nt", reason="closes numbers as a POSIX shell does")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_training_with_standard_streams_closed_writes_whole_files_and_no_traceback(tmp_path, story, closed):
    """Number 1 would otherwise be given to the next file that is opened, and a child's output would stand in it."""
    typed = shlex.join([sys.executable, "-m", "ambidex", *train_words(story, tmp_path / "run", steps=4)])
    done = subprocess.run(["sh", "-c", f"{typed} {closed}"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    typed = shlex.join([sys.executable, "-m", "ambidex", "sample", str(tmp_path / "run"), "--tokens", "3"])
    done = subprocess.run(["sh", "-c", f"{typed} {closed}"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert len(read_metrics(tmp_path / "run" / "metrics.csv")) == 4


def test_a_value_that_begins_with_a_dash_is_that_flags_value(capsys):
    assert cli.main(["train", "--time", "-5s"]) == 2
    said = capsys.readouterr().err
    assert "'-5s' (flag --time)" in said
    assert "0 or more" in said
    assert "no flag" not in said


def test_a_sample_is_told_how_a_value_with_a_dash_is_typed(capsys):
    assert cli.main(["sample", "run", "--prompt", "-x"]) == 2
    assert "--flag=-value" in capsys.readouterr().err


def test_an_empty_word_is_said_to_be_empty(capsys):
    assert cli.main(["train", ""]) == 2
    assert "A word of the command is empty" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--seed 3", "--rounds 2", "--data x.txt", "--to-loss 1 --data x.txt --steps 5",
                                   "--to-loss 1 --data x.txt --precision fp32", "--to-loss 1 --data x.txt --threads 1"])  # fmt: skip
def test_what_bench_would_not_heed_is_refused(words, capsys):
    assert cli.main(["bench", *words.split()]) == 2
    assert "has no effect" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "ours"), [("--lr", "--learning-rate"), ("--max_steps", "--steps"), ("--block-size", "--context"),
                                             ("--n-layer=4", "--layers"), ("--dtype", "--precision")])  # fmt: skip
def test_the_word_of_another_trainer_is_answered_with_ours(capsys, typed, ours):
    assert cli.main(["train", typed, "3"]) == 2
    assert f"it is '{ours}' here" in capsys.readouterr().err


@pytest.mark.parametrize(("typed", "said"), [("--finetune", "a run begins with fresh weights"), ("--epochs", "not in passes over the text"),
                                             ("--bf16", "do: --precision bf16"), ("--warmup-steps", "the part of the steps")])  # fmt: skip
def test_what_another_trainer_counts_otherwise_or_has_alone_is_said(capsys, typed, said):
    assert cli.main(["train", typed, "3"]) == 2
    assert said in capsys.readouterr().err


def test_every_word_of_other_trainers_leads_to_a_setting_and_is_none_itself():
    words = [word for names in synonyms.OURS.values() for word in names]
    assert set(synonyms.OURS) <= set(fields())
    assert len(words) == len(set(words))
    assert not {*words, *synonyms.NONE} & set(fields())
    assert not set(words) & set(synonyms.NONE)


def test_texts_behind_two_flags_are_both_read():
    flags, _, unknown = train_flags(["--data", "a.txt", "b.txt", "--steps", "3", "--data", "c.txt"])
    assert flags["data"] == ["a.txt", "b.txt", "c.txt"]
    assert not unknown


def test_a_run_is_found_by_the_name_that_top_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AMBIDEX_RUNS", raising=False)
    (tmp_path / "runs" / "nano-001").mkdir(parents=True)
    assert cli.main(["sample", "nano-001"]) == 3
    assert "did you mean" not in capsys.readouterr().err
    (tmp_path / "runs" / "nano-001" / "card.json").write_text("{}")
    assert cli.main(["sample", "nano-001"]) == 3
    assert f"did you mean {Path('runs', 'nano-001')}?" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["explain {} --json", "explain --json {}", "--json explain {}"])
def test_explain_takes_its_file_before_and_behind_flags(tmp_path, capsys, words):
    (tmp_path / "log.txt").write_text("Cannot re-initialize CUDA in forked subprocess")
    assert cli.main(["doctor", *words.format(tmp_path / "log.txt").split()]) == 0
    assert json.loads(capsys.readouterr().out)["cause"]["id"] == "forked"


@pytest.mark.parametrize("flag", ["--strict", "--report", "--no-probe", "--device=cuda"])
def test_explain_refuses_what_it_would_not_heed(tmp_path, capsys, flag):
    assert cli.main(["doctor", "explain", str(tmp_path / "log.txt"), flag]) == 2
    assert "would change nothing in its answer" in capsys.readouterr().err
