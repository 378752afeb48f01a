"""Bad input gets a sentence and an exit code, and loses nothing. The list itself is `bad_inputs.py`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import bad_inputs
from ambidex import cli, config
from ambidex.device.diagnosis import DoctorExit
from bad_inputs import ALL, SMALL, TEXT, Bad

PAGE = Path(__file__).parents[1] / "docs" / "bad-input.md"


def files(folder: Path) -> dict[str, bytes]:
    """Every file under a folder but the token cache and locks, which no work is lost with."""
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and "cache" not in path.parts and path.name != ".lock"}  # fmt: skip


@pytest.mark.parametrize("bad", ALL, ids=[bad.name for bad in ALL])
def test_it_ends_in_a_sentence_and_its_exit_code_and_every_file_stays(
    bad: Bad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMBIDEX_CACHE", str(tmp_path / "cache"))
    Path("book.txt").write_text(TEXT)
    bad.there()
    before = files(tmp_path)
    for name, value in bad.environment.items():
        monkeypatch.setenv(name, value)
    capsys.readouterr()
    with bad_inputs.unreadable("locked.txt"):
        code = cli.main(bad.arguments())
    said = capsys.readouterr().err
    # A device that cannot be had ends in the doctor's code for this machine's own cause: no GPU, none passed in, ...
    assert code == bad.code or (
        bad.code == DoctorExit.CPU_ONLY and code in set(DoctorExit) - {DoctorExit.USABLE}
    )
    for part in bad.said:
        assert part in said
    assert said.startswith(("error: ", f"{said[:1]} errors:", "cache: "))
    assert "Traceback" not in said
    assert files(tmp_path) == before
    if not bad.varies:
        section = "\n".join(bad_inputs.section(bad, said))
        assert section in PAGE.read_text("utf-8"), (
            "write the page again: python tests/bad_inputs.py > docs/bad-input.md"
        )


def test_the_page_lists_every_one_and_no_other() -> None:
    headings = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("### ")]
    assert headings == [f"### {bad.name[:1].upper()}{bad.name[1:]}: exit {bad.code}" for bad in ALL]


def test_a_terminal_that_cannot_show_a_name_gets_it_escaped(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "book.txt").write_text(TEXT)
    name = os.fsdecode(b"run-\xff") if sys.platform == "linux" else "run"
    command = [sys.executable, "-m", "ambidex", "train", "--data", "book.txt", *SMALL, "--out", name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert (tmp_path / name / "loss.png").stat().st_size > 0


def values() -> st.SearchStrategy[str]:
    """What people put after a flag, into a variable or behind an equals sign."""
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
    numbers = st.one_of(st.integers(-3, 40), st.integers(), st.floats()).map(str)
    known = st.sampled_from(["true", "false", "byte", "char", "bpe", "cpu", "wsd", "muon", "1e-3", "90s", "builtin", "[]",
                             '"x"', "{}", "[1, 2]", "1979-05-27", "''", "0x10", "inf", "nan", "-0.0"])  # fmt: skip
    return st.one_of(known, numbers, text)


# `out`, `resume` and `data` decide which files are touched; a device other than the CPU has exit codes of its own.
KEYS = sorted(set(config.fields()) - {"out", "resume", "data", "device", "dry_run", "threads"})
names = st.one_of(st.sampled_from(KEYS), st.text("abcdefgh_-", max_size=8))
toml = st.one_of(
    st.text(max_size=60),
    st.lists(st.tuples(names, values()).map(lambda pair: f"{pair[0]} = {pair[1]}"), max_size=4).map(
        "\n".join
    ),
    st.lists(st.sampled_from(["[", "]", "=", '"', "\n", "a", "1", "{", "}", "#", "'''"]), max_size=30).map(
        "".join
    ),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=toml,
    flags=st.lists(st.tuples(names, values()), max_size=4),
    variables=st.dictionaries(st.sampled_from(KEYS), values(), max_size=3),
)
def test_whatever_is_written_or_typed_ends_without_a_traceback(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    flags: list[tuple[str, str]],
    variables: dict[str, str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ambidex.engine.Device.matmul_rate", lambda *_: 1e9)  # a quarter of a second each
    Path("book.txt").write_text(TEXT)
    Path("mine.toml").write_text(text, "utf-8")
    typed = [word for name, value in flags for word in (f"--{name.replace('_', '-')}", value)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(config.variable(name), value)
        words = [
            "train",
            "mine.toml",
            "--data",
            "book.txt",
            "--device",
            "cpu",
            "--threads",
            "1",
            *typed,
            "--dry-run",
        ]
        try:
            code = cli.main(words)
        except SystemExit as asked:  # --help, which argparse answers by itself
            code = int(asked.code or 0)
    said = capsys.readouterr()
    assert code in (0, 2, 3, 4)
    assert (code == 0) == (said.err == "")
    assert "Traceback" not in said.err
    assert not Path("runs").exists()
