"""What the pages tell one to type is typed, in a folder of its own, on a tiny model; what they show is what is printed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ambidex
from ambidex import cli, parsers
from ambidex.commands import parser_of
from docs_commands import ELSEWHERE, ROOT, Command, commands, inline, pages
from tiny import TINY

DOCTOR = {0, 10, 20, 21, 22, 23, 24, 25, 30}
HERE = [page for page in pages() if page.relative_to(ROOT).as_posix() not in ELSEWHERE]
PRELUDE = """
import torch, ambidex
def make():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    return model, torch.optim.SGD(model.parameters(), lr=1e-2)
def train(model, optimizer):
    for _ in range(3):
        model(torch.ones(2, 4)).sum().backward(); optimizer.step(); optimizer.zero_grad()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch, story):
    """Where a reader may stand: a text, an error that was saved, the project's examples, a small machine."""
    pytest.importorskip("torch")
    shutil.copy(story, tmp_path / "book.txt")
    (tmp_path / "data").mkdir()
    shutil.copy(story, tmp_path / "data" / "book.txt")
    (tmp_path / "error.txt").write_text(
        "RuntimeError: CUDA error: no kernel image is available for execution on the device"
    )
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, value in {**TINY, "data": tmp_path / "book.txt"}.items():
        if name not in ("device", "steps", "save_every", "evaluate_every"):
            monkeypatch.setenv(f"AMBIDEX_{name.upper()}", str(value))
    monkeypatch.setenv("COLUMNS", "100")
    programs = tmp_path / ".programs"
    programs.mkdir()
    (programs / "ambidex").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ambidex "$@"\n')
    (programs / "ambidex").chmod(0o755)
    (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (programs / "python").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    source = str(Path(ambidex.__file__).parents[1])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_runs(words: list[str]) -> None:
    """The runs that a command reads and that no earlier one of its page has made."""
    for word in words[2:]:
        if words[1] in ("sample", "export") and not word.startswith("-"):
            if not Path(word, "card.json").exists():
                ambidex.train(steps=3, out=word)
            return


def type_in(command: Command, capsys) -> tuple[int, str]:
    words = shlex.split(command.typed)
    if words[0] != "ambidex" or re.search(r"[|;&<>]", command.typed):
        if "ambidex" in words:
            make_runs(words[words.index("ambidex") :])
        done = subprocess.run(
            ["bash", "-c", command.typed], capture_output=True, text=True, check=False, timeout=200
        )
        return done.returncode, done.stdout + done.stderr
    make_runs(words)
    capsys.readouterr()
    try:
        code = cli.main(words[1:])
    except SystemExit as ended:
        code = int(ended.code or 0)
    shown = capsys.readouterr()
    return code, shown.out + shown.err


@pytest.mark.parametrize("page", HERE, ids=lambda page: page.stem)
def test_what_a_page_says_to_type_can_be_typed_in_its_order(page, folder, capsys, monkeypatch):
    if "--steps" not in page.read_text(
        "utf-8"
    ):  # else a later command of the page would contradict the variable
        monkeypatch.setenv("AMBIDEX_STEPS", "9")
    for command in commands(page):
        if command.not_run:
            continue
        if command.language == "python":
            exec(compile(PRELUDE + command.typed, str(command), "exec"), {"__name__": "__main__"})
            continue
        code, printed = type_in(command, capsys)
        doctor = command.typed.startswith("ambidex doctor")
        assert code in (DOCTOR if doctor else {0}), f"{command}: {command.typed}\nexit code {code}\n{printed}"
        assert "Traceback" not in printed, f"{command}: {command.typed}\n{printed}"
        if doctor and sys.version_info[:2] == (3, 11):  # the newest build depends on the Python
            lines = printed.splitlines()
            for line in command.shown:
                begun = line.removesuffix(" ...").rstrip()
                assert any(real.startswith(begun) for real in lines), (
                    f"{command}: not printed any more: {line}"
                )


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_commands_in_sentences_and_tables_exist_with_their_flags(page):
    for written, flags in inline(page):
        name = written.split()[1]
        assert name in parsers.COMMANDS, f"{page.name}: `{written}`"
        known = {flag for action in parser_of(name)._actions for flag in action.option_strings}
        assert set(flags) <= known | {"--help"}, f"{page.name}: `{written}`"


def test_a_fence_that_is_not_run_says_why_and_most_are_run():
    every = [command for page in HERE for command in commands(page)]
    assert all(len(command.not_run) > 10 for command in every if command.not_run)
    ours = [command for command in every if re.match(r"ambidex |python examples", command.typed)]
    assert len(ours) > 20
    left_out = [str(command) for command in ours if command.not_run]
    assert len(left_out) <= 3, left_out


def test_the_reader_of_pages_sees_commands_remarks_and_output():
    page = ROOT / "docs" / "doctor.md"
    first = next(iter(commands(page)))
    assert first.typed == 'ambidex doctor --torch 2.5.1+cu121 --gpu "RTX 5060" --driver 576.02'
    assert first.shown[0].startswith("GPU 0  GeForce RTX 5060 is sm_120")
