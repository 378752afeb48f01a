"""The cache under stress: builders at once, kills, full disks, and folders that may not be written."""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ambidex.errors import Exit, Problems
from ambidex.text import Tokens, prepare
from ambidex.text.cache import default_cache

TokensOf = Callable[..., Tokens]

# Prepares argv[1] into argv[2]. Before the function that argv[3] names it leaves a mark and sleeps
# argv[4] seconds, or until argv[4] is there where that names a file. It prints how often it has built, and the hash.
CHILD = """
import importlib, sys, time
from pathlib import Path
from ambidex.errors import Problems
from ambidex.text import prepare, tokens

data, cache, stop_at, seconds = sys.argv[1:]
builds = 0

def stopping(function):
    def stopped(*args, **kwargs):
        Path(cache + ".mark").touch()
        if seconds.replace(".", "").isdigit():
            time.sleep(float(seconds))
        while not seconds.replace(".", "").isdigit() and not Path(seconds).exists():
            time.sleep(0.01)
        return function(*args, **kwargs)
    return stopped

def counting(build):
    def counted(*args):
        global builds
        builds += 1
        build(*args)
    return counted

module, name = stop_at.rsplit(".", 1)
module = importlib.import_module("ambidex.text." + module)
setattr(module, name, stopping(getattr(module, name)))
tokens._build = counting(tokens._build)
try:
    made = prepare([data], tokenizer="byte", vocabulary_size=0, field="text", validation_fraction=0.1,
                   cache=Path(cache), progress=False)
except Problems as problems:
    sys.exit(f"{problems}\\nexit code {problems.exit_code}")
print(builds, made.data_hash)
"""


def start(*arguments: Path | str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        **{"stderr": subprocess.PIPE, **options},
    )


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("All work and no play makes Jack a dull boy.\n" * 2000)
    return path


def test_of_processes_that_start_at_once_one_builds_and_the_others_wait_for_it(
    text: Path, cache: Path, tmp_path: Path
) -> None:
    # The one that builds goes on only when the two others have said that they wait for it.
    go, said = tmp_path / "go", [tmp_path / f"said-{number}" for number in range(3)]
    started = [start(text, cache, "tokens._write_manifest", go, stderr=path.open("w")) for path in said]
    stop = time.monotonic() + 90
    while sum("another process is preparing this text" in path.read_text() for path in said) < 2:
        assert time.monotonic() < stop, "two of them wait for the third"
        time.sleep(0.02)
    go.touch()
    ended = [process.communicate(timeout=90)[0] for process in started]
    assert sorted(out.split()[0] for out in ended) == ["0", "0", "1"]
    assert len({out.split()[1] for out in ended}) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize(
    "instant", ["tokens._cut", "tokens._write_manifest", "cache.sync_files", "cache.sync_folder"]
)
def test_a_kill_at_any_instant_leaves_a_usable_cache(
    instant: str, text: Path, cache: Path, tokens_of: TokensOf, capsys: pytest.CaptureFixture[str]
) -> None:
    process = start(text, cache, instant, "60")
    mark = Path(f"{cache}.mark")
    deadline = time.monotonic() + 60
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert list(cache.glob(".building-*"))
    other = text.with_name("other.txt")
    other.write_text("Another text, whose builder sweeps what the killed one left.\n" * 20)
    tokens_of(other)
    assert not list(cache.glob(".building-*"))
    tokens = tokens_of(text)
    assert (
        tokens.tokenizer.decode(tokens.train) + tokens.tokenizer.decode(tokens.validation)
        == text.read_bytes()
    )
    assert not list(cache.glob(".building-*"))
    assert "damaged" not in capsys.readouterr().err


def test_what_a_living_builder_is_building_is_not_swept(text: Path, cache: Path, tokens_of: TokensOf) -> None:
    process = start(text, cache, "tokens._write_manifest", "1.5")
    while not Path(f"{cache}.mark").exists():
        time.sleep(0.01)
    other = text.with_name("other.txt")
    other.write_text("Another text.\n" * 20)
    tokens_of(other)
    assert list(cache.glob(".building-*"))
    out, err = process.communicate(timeout=60)
    assert out.startswith("1 "), err


def test_an_interrupted_build_leaves_nothing(
    text: Path, cache: Path, tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ambidex.text.tokens._write_manifest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokens_of(text)
    assert not [path for path in cache.iterdir() if path.name != "locks"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_a_disk_that_fills_up_ends_in_exit_4_and_leaves_nothing(name: str, text: Path, cache: Path) -> None:
    import resource

    data = text.with_name(name)
    if name.endswith(".gz"):
        data.write_bytes(gzip.compress(text.read_bytes()))
    limit = 20_000  # bytes in any file that is written: the same error to us as a full disk
    process = start(
        data,
        cache,
        "tokens._cut",
        "0",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    _, err = process.communicate(timeout=60)
    assert "cannot be written" in err
    assert "AMBIDEX_CACHE" in err
    assert "exit code 4" in err
    assert not [path for path in cache.iterdir() if path.name != "locks"]


def settings(cache: Path) -> dict[str, Any]:
    return {
        "tokenizer": "byte",
        "vocabulary_size": 0,
        "field": "text",
        "validation_fraction": 0.1,
        "cache": cache,
        "progress": False,
    }


def test_a_cache_that_may_not_be_written_says_which_variable_to_set(
    open_folder: Path, as_nobody: Callable[[], Any]
) -> None:
    data = open_folder / "a.txt"
    data.write_text("text " * 50)
    (open_folder / "cache").mkdir()
    for folder in (open_folder / "cache", open_folder):
        folder.chmod(0o555)
    for cache in (open_folder / "cache", open_folder / "new", data):  # the last is a file
        with as_nobody(), pytest.raises(Problems) as raised:
            prepare([str(data)], **settings(cache))
        assert raised.value.exit_code == 4
        assert "AMBIDEX_CACHE" in str(raised.value)


def test_a_read_only_cache_that_holds_the_tokens_is_enough(
    open_folder: Path, as_nobody: Callable[[], Any]
) -> None:
    data, cache = open_folder / "a.txt", open_folder / "cache"
    data.write_text("text " * 50)
    made = prepare([str(data)], **settings(cache))
    for path in (*cache.rglob("*"), cache):
        path.chmod(0o555 if path.is_dir() else 0o444)
    with as_nobody():
        assert prepare([str(data)], **settings(cache)).data_hash == made.data_hash


@pytest.mark.parametrize("environment", [{}, {"AMBIDEX_CACHE": "~/tokens"}])
def test_where_there_is_no_home_the_cache_is_asked_for_and_not_guessed(environment, monkeypatch):
    pwd = pytest.importorskip("pwd")

    def nobody(number: int) -> None:  # as in a container that runs under a number without a name
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(Problems) as found:
        default_cache(environment, "linux")
    assert found.value.exit_code == Exit.CANNOT_WRITE
    assert "AMBIDEX_CACHE=FOLDER" in str(found.value)
    assert default_cache({"AMBIDEX_CACHE": "/somewhere"}, "linux") == Path("/somewhere")
