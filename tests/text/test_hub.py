"""``hf:NAME``: data sets on this machine in their own format; what is not to be had fails within seconds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ambidex.errors import Problems
from ambidex.text import Tokens

TokensOf = Callable[..., Tokens]
EXPECTED = ("wörld\n\0" + "two " * 30).encode()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with the same data set saved alone, saved in splits, and as JSON lines."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    one = datasets.Dataset.from_dict({"text": ["wörld\n", None, "", "two " * 30], "n": [1, 2, 3, 4]})
    other = datasets.Dataset.from_dict({"text": ["other"], "n": [5]})
    one.save_to_disk(tmp_path / "alone")
    datasets.DatasetDict({"train": one, "test": other}).save_to_disk(tmp_path / "splits")
    datasets.DatasetDict({"first": one, "second": other}).save_to_disk(tmp_path / "unnamed")
    return tmp_path


@pytest.mark.parametrize("word", ["alone", "splits", "splits@train", "unnamed@first"])
def test_a_saved_data_set_is_read(word: str, saved: Path, tokens_of: TokensOf) -> None:
    for _ in range(2):
        tokens = tokens_of(f"hf:{saved / word}", validation_fraction=0.0)
        assert tokens.tokenizer.decode(tokens.train) == EXPECTED
        assert tokens.summary.documents == 2


def test_another_split_is_another_text(saved: Path, tokens_of: TokensOf) -> None:
    tokens = tokens_of(f"hf:{saved / 'splits'}@test", validation_fraction=0.0)
    assert tokens.tokenizer.decode(tokens.train) == b"other"


def test_a_data_set_saved_anew_is_never_stale(saved: Path, tokens_of: TokensOf) -> None:
    import datasets

    before = tokens_of(f"hf:{saved / 'alone'}").data_hash
    changed = datasets.Dataset.from_dict({"text": ["wörlds\n", None, "", "two " * 30], "n": [1, 2, 3, 4]})
    changed.save_to_disk(saved / "alone")
    assert tokens_of(f"hf:{saved / 'alone'}").data_hash != before


@pytest.mark.parametrize(
    ("word", "field", "expected"),
    [
        ("alone", "txt", "did you mean 'text'?"),
        ("alone", "n", "holds no text"),
        ("splits@vaildation", "text", "train, test"),
        ("unnamed", "text", "first, second"),
    ],
)
def test_a_wrong_column_or_split_is_told_from_those_there(
    word: str, field: str, expected: str, saved: Path, tokens_of: TokensOf
) -> None:
    with pytest.raises(Problems) as raised:
        tokens_of(f"hf:{saved / word}", field=field)
    assert raised.value.exit_code == 3
    assert expected in str(raised.value)


def test_a_folder_that_is_no_data_set_is_a_problem(saved: Path, tokens_of: TokensOf) -> None:
    (saved / "empty").mkdir()
    with pytest.raises(Problems, match="cannot be had") as raised:
        tokens_of(f"hf:{saved / 'empty'}")
    assert raised.value.exit_code == 3


def test_without_a_network_it_fails_within_seconds(cache: Path) -> None:
    pytest.importorskip("datasets")
    program = f"""
from pathlib import Path
from ambidex.errors import Problems
from ambidex.text import prepare
try:
    prepare(["hf:nobody/nothing"], tokenizer="byte", vocabulary_size=0, field="text", validation_fraction=0.1,
            cache=Path({str(cache)!r}), progress=False)
except Problems as problems:
    print(problems, problems.exit_code)
"""
    started = time.monotonic()
    # Nothing listens on port 9 of this machine: the hub "cannot be reached", whatever network the tests have.
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(cache / "hf")}
    ran = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the hub cannot be reached" in ran.stdout, ran.stderr
    assert ran.stdout.endswith("3\n")
    assert time.monotonic() - started < 15


def test_a_missing_library_says_what_to_type(tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(Problems) as raised:
        tokens_of("hf:nobody/nothing")
    assert raised.value.exit_code == 3
    assert 'pip install "ambidex[hub]"' in str(raised.value)
