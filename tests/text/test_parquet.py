"""Parquet: any kind of text column, streamed; the wrong column or no pyarrow ends in a sentence."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambidex.errors import Problems
from ambidex.text import Tokens
from ambidex.text.readers import Parquet

TokensOf = Callable[..., Tokens]
TEXTS = ["wörld\n", None, "", "two " * 30]


def test_a_missing_pyarrow_says_what_to_type(
    tmp_path: Path, tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(Problems) as raised:
        tokens_of(tmp_path / "a.parquet")
    assert raised.value.exit_code == 3
    assert 'pip install "ambidex[parquet]"' in str(raised.value)


def refusal(source: Parquet) -> str:
    """What a source that cannot be read says, with its exit code; nothing where it can."""
    try:
        for document in source.documents("text"):
            b"".join(document)
    except Problems as problems:
        return f"{problems} (exit {problems.exit_code})"
    return ""


def write(path: Path, columns: dict[str, Any], **options: Any) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.table(columns), path, **options)


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary", "string_view"])
@pytest.mark.parametrize("gzipped", [False, True])
def test_every_kind_of_text_column_is_read(
    kind: str, gzipped: bool, tmp_path: Path, tokens_of: TokensOf
) -> None:
    arrow = pytest.importorskip("pyarrow")
    texts = arrow.array(TEXTS)
    column = texts.dictionary_encode() if kind == "dictionary" else texts.cast(getattr(arrow, kind)())
    write(tmp_path / "a.parquet", {"n": [1, 2, 3, 4], "text": column})
    path = tmp_path / "a.parquet"
    if gzipped:
        path = tmp_path / "b.parquet.gz"
        path.write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    tokens = tokens_of(path, validation_fraction=0.0)
    assert tokens.tokenizer.decode(tokens.train) == ("wörld\n\0" + "two " * 30).encode()
    assert tokens.summary.documents == 2


def test_many_rows_in_many_groups_keep_their_order(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(5000)]
    write(tmp_path / "a.parquet", {"text": texts}, row_group_size=700)
    documents = Parquet("a.parquet", tmp_path / "a.parquet", 1).documents("text")
    assert [b"".join(document).decode() for document in documents] == texts


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("txt", "did you mean 'text'?"),
        ("n", "holds no text"),
        ("words", "holds no text"),
        ("zzz", "'n', 'words'"),
    ],
)
def test_a_wrong_column_is_told_from_those_there(
    field: str, expected: str, tmp_path: Path, tokens_of: TokensOf
) -> None:
    write(tmp_path / "a.parquet", {"text": ["a"], "n": [1], "words": [["a"]]})
    with pytest.raises(Problems) as raised:
        tokens_of(tmp_path / "a.parquet", field=field)
    assert raised.value.exit_code == 3
    assert expected in str(raised.value)


@given(rubbish=st.binary(max_size=100), place=st.integers(0, 10**6), cut=st.integers(0, 10**6))
def test_damaged_parquet_is_read_or_refused_in_words(
    rubbish: bytes, place: int, cut: int, tmp_path: Path
) -> None:
    good = tmp_path / "good.parquet"
    if not good.exists():
        write(good, {"text": ["one", "two"] * 10})
    whole = good.read_bytes()
    place %= len(whole)
    for damaged in (
        b"PAR1" + rubbish + b"PAR1",
        whole[: cut % len(whole)],
        whole[:place] + rubbish + whole[place + len(rubbish) :],
    ):
        path = tmp_path / "a.parquet"
        path.write_bytes(damaged)
        said = refusal(Parquet("a.parquet", path, 1))
        assert not said or ("a.parquet" in said and said.endswith("(exit 3)"))
