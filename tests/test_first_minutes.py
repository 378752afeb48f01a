"""What a newcomer sees: the first words, help, completion, and a terminal that cannot show everything."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ambidex import cli, commands, parsers, welcome
from ambidex.runs import Run
from tiny import TINY, ambidex, flags, train_words

ESCAPE = re.compile("\x1b")


@pytest.fixture(scope="module")
def run(story: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("first") / "runs"
    words = train_words(story, runs / "nano-001", steps=3)
    done = ambidex(*words, env={**os.environ, "AMBIDEX_CACHE": str(runs.parent / "cache")})
    assert done.returncode == 0, done.stderr
    return runs / "nano-001"


def test_alone_it_says_what_to_do_next_where_nothing_is_yet(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AMBIDEX_RUNS", str(tmp_path / "none"))
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert out.index("next:") < out.index("ambidex train --dry-run")


def test_what_is_next_after_a_run_is_to_use_it(run):
    assert welcome.next_steps(run.parent)[0][0] == f"ambidex sample {run}"


def test_an_export_is_next_where_there_can_be_one(run, tmp_path):
    def offered(runs):
        return [typed for typed, _ in welcome.next_steps(runs) if typed.startswith("ambidex export")]

    assert offered(run.parent)
    shutil.copytree(run, tmp_path / "runs" / "with-groups")
    card = tmp_path / "runs" / "with-groups" / "card.json"
    card.write_text(card.read_text("utf-8").replace('"ngrams": 1', '"ngrams": 3'), "utf-8")
    assert not offered(tmp_path / "runs")


def test_what_is_next_after_half_a_run_is_to_go_on(run, tmp_path):
    shutil.copytree(run, tmp_path / "a run" / "half")
    card = tmp_path / "a run" / "half" / "card.json"
    card.write_text(card.read_text("utf-8").replace('"steps": 3', '"steps": 9'), "utf-8")
    typed, why = welcome.next_steps(tmp_path / "a run")[0]
    assert shlex.split(typed) == ["ambidex", "train", "--resume", "--out", str(tmp_path / "a run" / "half")]
    assert "step 3 of 9" in why


def test_what_is_next_while_a_run_is_trained_is_to_look_at_it(run, tmp_path, capsys, monkeypatch):
    shutil.copytree(run, tmp_path / "a \x1b[2J run" / "half")
    held = Run(tmp_path / "a \x1b[2J run" / "half")
    held.lock()
    try:
        assert welcome.next_steps(held.path.parent)[0][0].startswith("ambidex top ")
        monkeypatch.setenv("AMBIDEX_RUNS", str(held.path.parent))
        assert cli.main([]) == 0
    finally:
        held.unlock()
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", '{"config": {}}', '{"config": {"steps": "x"}}', "\x00"])
def test_a_folder_that_cannot_be_read_is_passed_over(run, tmp_path, content):
    shutil.copytree(run, tmp_path / "odd")
    (tmp_path / "odd" / "card.json").write_text(content, "utf-8")
    assert welcome.next_steps(tmp_path)[0][0] == "ambidex doctor"


def test_without_torch_the_next_thing_is_to_install_it_and_train_says_so():
    code = ("import sys\nfor name in ('torch', 'pydantic', 'numpy'): sys.modules[name] = None\n"
            "import importlib.util as u, ambidex.cli as c\nreal = u.find_spec\n"
            "u.find_spec = lambda name, *rest: None if name in ('torch', 'pydantic') else real(name, *rest)\n"
            "sys.exit(c.main(sys.argv[1:]))")  # fmt: skip

    def typed(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
        )

    assert 'pip install "ambidex[train]"' in typed().stdout
    for command in ("train", "sample run", "export run --to x", "bench", "presets"):
        done = typed(*command.split())
        assert done.returncode == 2, done.stderr
        assert 'pip install "ambidex[train]"' in done.stderr
        assert "Traceback" not in done.stderr


def test_the_help_of_train_names_the_defaults_that_hold_and_the_words_that_fit(capsys):
    from ambidex import config

    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = capsys.readouterr().out
    nano = config.resolve({}, environment={}).settings
    assert f"Optimizer updates in the whole run. [{nano.steps}]" in shown
    assert "--optimizer {adamw,muon}" in shown
    assert "[PRESET]" not in shown
    assert len(shown.split("\n\n")[0]) < 80  # a usage line, not a wall of flags


def test_a_help_is_shown_without_the_packages_that_training_needs():
    code = "import sys; sys.modules['pydantic'] = None; from ambidex.cli import main; sys.exit(main(['train', '--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ambidex train --dry-run" in done.stdout
    assert 'pip install "ambidex[train]"' in done.stdout


@pytest.mark.parametrize("command", list(parsers.COMMANDS))
def test_the_examples_in_a_help_are_understood_by_the_command(command, capsys):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    shown = capsys.readouterr().out
    assert parsers.EXAMPLES[command]
    for example in parsers.EXAMPLES[command]:
        assert f"  {example}\n" in shown
        words = shlex.split(example.split(">")[0])
        assert words[:2] == ["ambidex", command]
        _, unknown = commands.parser_of(command).parse_known_args(words[2:])
        assert unknown in ([], ["error.txt"])


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_command_and_every_flag(shell, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed: the extra test brings it")
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    from ambidex import config

    for word in (*parsers.COMMANDS, *map(config.flag, config.fields())):
        assert word in script
    assert "nano" in script
    if shutil.which(shell):
        assert subprocess.run([shell, "-n"], input=script, text=True, check=False).returncode == 0


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is not here")
def test_in_bash_the_tab_key_completes(tmp_path, capsys):
    pytest.importorskip("shtab", reason="shtab is not installed: the extra test brings it")
    cli.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        typed = " ".join(map(shlex.quote, words))
        ask = f"source ./script; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; _shtab_ambidex; echo ${{COMPREPLY[@]}}"
        return subprocess.run(
            ["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.split()

    assert completed("ambidex", "ex") == ["export"]
    assert completed("ambidex", "train", "--optim") == ["--optimizer"]
    assert completed("ambidex", "train", "--optimizer", "") == ["adamw", "muon"]


def test_the_shells_that_are_named_are_among_those_that_shtab_knows():
    shtab = pytest.importorskip("shtab", reason="shtab is not installed: the extra test brings it")
    from ambidex.completion import SHELLS

    assert set(SHELLS) <= set(shtab.SUPPORTED_SHELLS)


def test_an_unknown_shell_is_answered_with_the_known_ones(capsys):
    assert cli.main(["completion", "cmd"]) == 2
    assert "bash" in capsys.readouterr().err


def test_without_a_terminal_the_output_is_plain_lines(run, story, tmp_path):
    for words in (["doctor", "--no-probe"], ["variants"], ["sample", str(run), "--tokens", "5"], [],
                  train_words(story, tmp_path / "run", steps=2)):  # fmt: skip
        done = ambidex(*words)
        # The doctor's code is its verdict: 22 for a CUDA build in a container that was given no GPU.
        assert done.returncode in ((0, 22) if words[0:1] == ["doctor"] else (0,)), done.stderr
        assert not ESCAPE.search(done.stdout + done.stderr)
        assert "\r" not in done.stdout + done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_on_a_terminal_nothing_is_coloured_where_NO_COLOR_is_set(story, tmp_path):
    import pty

    main, other = pty.openpty()
    words = [sys.executable, "-m", "ambidex", *train_words(story, tmp_path / "run", steps=2)]
    process = subprocess.Popen(
        words, stdout=other, stderr=other, env={**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"}
    )
    os.close(other)
    shown = b""
    try:
        while some := os.read(main, 4096):
            shown += some
    except OSError:
        pass  # Linux says so where the other side is closed
    os.close(main)
    assert process.wait(60) == 0
    assert b"done" in shown
    assert not re.search(rb"\x1b\[[0-9;]*m", shown)


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "ascii", "cp932"])
def test_a_console_that_cannot_show_a_letter_gets_it_spelt_out(encoding, tmp_path):
    text = tmp_path / "Bücher 漢字.txt"
    text.write_text("é is followed by 漢字 and 🦊.\n" * 400, "utf-8")
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    words = [
        "train",
        *flags(
            **{**TINY, "steps": 2, "tokenizer": "char", "data": [str(text)], "out": str(tmp_path / "Läufe é")}
        ),
    ]
    command = [sys.executable, "-m", "ambidex"]
    for line in (words, ["sample", str(tmp_path / "Läufe é"), "--prompt", "é", "--tokens", "40"],
                 ["export", str(tmp_path / "Läufe é"), "--to", str(tmp_path / "öffentlich")]):  # fmt: skip
        done = subprocess.run([*command, *line], capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode("ascii", "replace")
        done.stdout.decode(encoding)
    assert "Bücher" in (tmp_path / "öffentlich" / "README.md").read_text("utf-8")
