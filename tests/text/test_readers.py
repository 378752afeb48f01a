"""Readers: what was written is what is read; rubbish ends in a sentence, never in a traceback."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambidex.errors import Problems
from ambidex.text import Tokens
from ambidex.text import readers as room
from ambidex.text.corpus import Corpus
from ambidex.text.readers import JsonLines, Parquet, TextFile

TokensOf = Callable[..., Tokens]
ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=60)  # halves of surrogate pairs too


def read(source: TextFile, field: str = "text") -> list[bytes]:
    return [b"".join(document) for document in source.documents(field)]


def refusal(source: TextFile) -> str:
    """What a source that cannot be read says, with its exit code; nothing where it can."""
    try:
        read(source)
    except Problems as problems:
        return f"{problems} (exit {problems.exit_code})"
    return ""


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(content, 1) if name.endswith(".gz") else content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@given(content=st.binary(max_size=300))
def test_text_comes_back_byte_for_byte(name: str, content: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, name, content)
    assert read(TextFile(name, path, 1, gzipped=name.endswith(".gz"))) == [content]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
@given(texts=st.lists(ANY_TEXT, max_size=8), ascii_only=st.booleans())
def test_json_lines_come_back_in_order(name: str, texts: list[str], ascii_only: bool, tmp_path: Path) -> None:
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in texts]
    path = written(tmp_path, name, "\n".join(lines).encode("utf-8", "surrogatepass"))
    expected = [text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts if text]
    got = [text.decode() for text in read(JsonLines(name, path, 1, gzipped=name.endswith(".gz")))]
    if ascii_only:
        assert got == expected
    else:  # raw halves of pairs are no UTF-8; each of their bytes is replaced
        assert [text.replace("\ufffd", "") for text in got] == [
            text.replace("\ufffd", "") for text in expected
        ]


def test_blank_lines_nulls_and_a_byte_order_mark_are_no_problem(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "a.jsonl",
        b'\xef\xbb\xbf{"text": "one"}\r\n\n  \n{"text": null}\n{"text": ""}\n{"text": "two"}',
    )
    assert read(JsonLines("a.jsonl", path, 1)) == [b"one", b"two"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"not json", "line 2 is not JSON"),
        (b'{"text": "cut of', "line 2 is not JSON"),
        (b"[1, 2]", "line 2 is not an object"),
        (b'{"text": 5}', "line 2: field 'text' is no text"),
        (b'{"txt": "a"}', "did you mean 'txt'?"),
        (b"{}", "none at all"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 5000, "line 2"),
        (b"\xff\xfe\x00", "line 2 is not JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_line(line: bytes, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    with pytest.raises(Problems) as raised:
        read(JsonLines("a.jsonl", path, 1))
    assert raised.value.exit_code == 3
    assert expected in str(raised.value)
    assert "a.jsonl, line 2" in str(raised.value)


def test_many_bad_lines_are_counted_over_all_files(tmp_path: Path, tokens_of: TokensOf) -> None:
    written(tmp_path, "a.jsonl", b"bad\n" * 1000)
    written(tmp_path, "b.jsonl", b'{"text": "good"}\nbad\n')
    with pytest.raises(Problems) as raised:
        tokens_of(tmp_path)
    said = str(raised.value)
    assert "a.jsonl: 995 more lines like these" in said
    assert "b.jsonl, line 2" in said
    assert len(raised.value.problems) == 7


def test_a_line_that_memory_could_not_hold_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "LONGEST_LINE", 100)
    path = written(tmp_path, "a.jsonl", b'{"text": "' + b"x" * 1000 + b'"}\n')
    with pytest.raises(Problems, match="line 1 is too long"):
        read(JsonLines("a.jsonl", path, 1))


@pytest.mark.parametrize("reader", [TextFile, JsonLines, Parquet])
@pytest.mark.parametrize("gzipped", [False, True])
@given(content=st.binary(max_size=200))
def test_rubbish_is_read_or_refused_in_words(
    reader: type[TextFile], gzipped: bool, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "rubbish"
    path.write_bytes(content)
    said = refusal(reader("rubbish", path, 1, gzipped))
    assert not said or ("rubbish" in said and said.endswith("(exit 3)"))


@given(cut=st.integers(0, 99), flip=st.integers(0, 99), text=st.binary(min_size=1, max_size=99))
def test_a_damaged_gzip_file_is_refused_in_words(cut: int, flip: int, text: bytes, tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(text))
    path = tmp_path / "a.txt.gz"
    path.write_bytes(whole[: cut * len(whole) // 100])
    if path.stat().st_size:
        with pytest.raises(Problems, match="no whole gzip file"):
            read(TextFile("a.txt.gz", path, 1, gzipped=True))
    whole[flip * len(whole) // 100] ^= 0xFF
    path.write_bytes(whole)
    source = TextFile("a.txt.gz", path, 1, gzipped=True)
    said = refusal(source)
    assert "no whole gzip file" in said or read(source) == [text]  # a flip may hit the header's date


def test_several_gzip_members_are_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"one ") + gzip.compress(b"two"))
    assert read(TextFile("a.txt.gz", path, 1, gzipped=True)) == [b"one two"]


def test_a_damaged_gzip_file_ends_preparing_with_exit_3(tmp_path: Path, tokens_of: TokensOf) -> None:
    path = tmp_path / "a.txt.gz"
    whole = gzip.compress(bytes(range(32, 127)) * 5000, 1)
    for content in (
        b"no gzip at all",
        whole[:-20],
        whole[:-8] + zlib.crc32(b"x").to_bytes(4, "little") + whole[-4:],
    ):
        path.write_bytes(content)
        with pytest.raises(Problems, match="no whole gzip file") as raised:
            tokens_of(path)
        assert raised.value.exit_code == 3


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_bytes_that_are_no_utf8_are_kept_or_replaced_and_never_crash(
    kind: str, tmp_path: Path, tokens_of: TokensOf
) -> None:
    content = "wörld ".encode("latin-1") * 5 + "wörld ".encode() * 60 + b"\xf0\x9f"
    (tmp_path / "a.txt").write_bytes(content)
    (tmp_path / "b.txt").write_text("clean " * 20)
    tokens = tokens_of(tmp_path, tokenizer=kind, vocabulary_size=258, validation_fraction=0.0)
    text = tokens.tokenizer.decode(tokens.train)
    assert sorted(text.split(b"\0")) == sorted(
        [content if kind == "byte" else content.decode("utf-8", "replace").encode(), b"clean " * 20]
    )
    assert tokens.train_bytes == len(text)
    assert tokens.summary.replaced == (0 if kind == "byte" else 1)
    assert ("U+FFFD in 1 document" in str(tokens.summary)) == (kind != "byte")


@given(size=st.integers(1, 9), before=st.sampled_from([b"", b"\xff", b"\xe8\x91"]))
def test_a_character_that_two_chunks_share_is_whole(size: int, before: bytes, tmp_path: Path) -> None:
    content = before + "wörld 葉 👩‍👩‍👧\n".encode() * 5
    path = written(tmp_path, "a.txt", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "CHUNK", size)
        corpus = Corpus([str(path)], "text", tmp_path)
        text = b"".join(corpus.text(replace_invalid=True))
    assert text == content.decode("utf-8", "replace").encode()
    assert corpus.replaced == bool(before)
