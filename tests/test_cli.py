import os
import subprocess
import sys
from pathlib import Path

import pytest

from ambidex import cli
from ambidex.parsers import COMMANDS


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
