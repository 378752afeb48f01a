"""Tokenizers: the text comes back exactly, JSON holds all of it, training gives the same bytes every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambidex.errors import Problems
from ambidex.text import StreamDecoder, Tokenizer, Tokens, load_tokenizer
from ambidex.text.bpe import BpeTokenizer
from ambidex.text.characters import pieces
from ambidex.text.tokenizer import PIECE, ByteTokenizer, CharTokenizer

SAMPLE = (
    "def walk(tree):\n    for leaf in tree:\n        yield leaf  # 葉 wörld's\n\n\n"
    "The king's men, they'll\tsing.\r\n"
) * 30
ODD = [
    "\n",
    " ",
    "\0",
    "def",
    "king's",
    "é",
    "👩‍👩‍👧",
    "\u00a0",
    "\u2028",
    "e\u0301",
    "\r\n",
    "\t",
    "<|endoftext|>",
]
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=200)
TEXT = ANY_TEXT | st.lists(st.sampled_from(ODD)).map("".join)


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return BpeTokenizer.train([SAMPLE.encode()], 300)


@given(text=TEXT)
def test_bpe_gives_every_text_back_exactly(bpe: BpeTokenizer, text: str) -> None:
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text.encode()
    assert ids.dtype == np.uint16
    assert bpe.token_lengths[ids].sum() == len(text.encode())


@given(text=TEXT)
def test_bytes_and_characters_give_every_text_back_exactly(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text.encode()
    if text:
        char = CharTokenizer(text)
        ids = char.encode(text)
        assert char.decode(ids) == text.encode()
        assert len(ids) == len(text)
        assert char.token_lengths[ids].sum() == len(text.encode())


@given(raw=st.binary(max_size=100))
def test_bytes_that_are_no_text_are_kept_by_bytes_and_replaced_by_bpe(bpe: BpeTokenizer, raw: bytes) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(raw)) == raw
    assert bpe.decode(bpe.encode(raw)) == raw.decode("utf-8", "replace").encode()


def test_a_lone_surrogate_in_a_prompt_is_replaced(bpe: BpeTokenizer) -> None:
    for tokenizer in (ByteTokenizer(), bpe):
        assert tokenizer.decode(tokenizer.encode("a\ud800b")).decode() == "a\ufffdb"


@given(text=TEXT, cuts=st.lists(st.integers(1, 50), max_size=5))
def test_the_tokens_do_not_depend_on_the_chunks(bpe: BpeTokenizer, text: str, cuts: list[int]) -> None:
    raw, chunks = text.encode(), []
    for cut in cuts:
        chunks.append(raw[:cut])
        raw = raw[cut:]
    chunks.append(raw)
    together = np.concatenate([np.empty(0, np.uint16), *bpe.encode_stream(chunks)])
    np.testing.assert_array_equal(together, bpe.encode(text))


@given(text=TEXT, size=st.integers(4, 40))
def test_pieces_are_short_whole_characters_that_add_up(text: str, size: int) -> None:
    cut = list(pieces([text.encode()], size))
    assert b"".join(cut) == text.encode()
    assert all(0 < len(piece) <= size and piece.decode() for piece in cut)


@pytest.fixture(scope="module")
def blank_lines() -> BpeTokenizer:
    """Trained on runs of blank lines and indents, which it joins: a cut within one would show."""
    return BpeTokenizer.train([b"x \n\n\n\n        y\n\n \n\n    z\n" * 50], 268)


@given(
    lines=st.lists(
        st.sampled_from(["if x:", "\n\n\n        y's", " \n\t z", "\n\n\n\n\u00a0\nw"]), min_size=5
    )
)
def test_pieces_are_cut_where_the_library_cuts_too(blank_lines: BpeTokenizer, lines: list[str]) -> None:
    text = "\n".join(lines)
    apart = [token for piece in pieces([text.encode()], 64) for token in blank_lines.encode(piece).tolist()]
    assert apart == blank_lines._model.encode(text, add_special_tokens=False).ids


def test_a_text_of_many_pieces_has_the_tokens_of_the_whole(bpe: BpeTokenizer) -> None:
    long = SAMPLE * (3 * PIECE // len(SAMPLE))
    whole = bpe._model.encode(long, add_special_tokens=False).ids  # the library's own answer, in one piece
    np.testing.assert_array_equal(bpe.encode(long), whole)


def test_a_long_line_without_any_line_end_is_encoded(bpe: BpeTokenizer) -> None:
    line = "wörld " * PIECE
    assert bpe.decode(bpe.encode(line)) == line.encode()


@pytest.mark.parametrize("kind", ["byte", "char", "bpe"])
def test_a_tokenizer_comes_back_from_json(kind: str, bpe: BpeTokenizer, tmp_path: Path) -> None:
    tokenizer: Tokenizer = {"byte": ByteTokenizer(), "char": CharTokenizer(SAMPLE + "\0"), "bpe": bpe}[kind]
    tokenizer.save(tmp_path / "tokenizer.json")
    json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    again = load_tokenizer(tmp_path / "tokenizer.json")
    assert type(again) is type(tokenizer)
    assert (again.kind, again.vocabulary_size) == (kind, tokenizer.vocabulary_size)
    assert again.end_of_document == tokenizer.end_of_document == 0
    np.testing.assert_array_equal(again.encode(SAMPLE), tokenizer.encode(SAMPLE))
    assert again.to_json() == tokenizer.to_json()


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"{}", b'{"kind": "char"}', b'{"model": {"type": "BPE"}}', b"\xff"]
)
def test_a_file_that_is_no_tokenizer_is_a_problem(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(Problems, match="no readable tokenizer") as raised:
        load_tokenizer(tmp_path / "tokenizer.json")
    assert raised.value.exit_code == 3


def test_bpe_adds_no_token_and_joins_what_is_frequent(bpe: BpeTokenizer) -> None:
    assert bpe.vocabulary_size == 300
    assert len(bpe.encode("")) == 0
    assert len(bpe.encode(SAMPLE)) < 0.7 * len(SAMPLE)
    assert bpe.encode("\0").tolist() == [bpe.end_of_document]
    assert bpe.token_bytes(0) == b"\0"
    assert sorted(bpe.token_bytes(token) for token in range(1, 257)) == [bytes([byte]) for byte in range(256)]


def test_bpe_training_gives_the_same_bytes_in_any_process_with_any_number_of_threads() -> None:
    program = (
        "import hashlib, sys; from ambidex.text.bpe import BpeTokenizer;"
        "text = open(sys.argv[1], 'rb').read();"
        "print(hashlib.sha256(BpeTokenizer.train([text], 1000).to_json().encode()).hexdigest())"
    )
    source = json.__file__.replace("__init__", "decoder")
    said = {
        subprocess.run(
            [sys.executable, "-c", program, source.replace("json/decoder", "argparse")],
            env=os.environ | {"RAYON_NUM_THREADS": threads, "PYTHONHASHSEED": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2", "5")
    }
    assert len(said) == 1


def test_a_vocabulary_larger_than_the_text_supports_says_what_it_supports(
    tmp_path: Path, tokens_of: Callable[..., Tokens]
) -> None:
    (tmp_path / "a.txt").write_text(SAMPLE, encoding="utf-8")
    with pytest.raises(Problems) as raised:
        tokens_of(tmp_path / "a.txt", tokenizer="bpe", vocabulary_size=30_000)
    assert raised.value.exit_code == 3
    fix = raised.value.problems[0].fix
    supported = int(fix.removeprefix("--vocabulary-size ").split(",")[0])
    assert 257 < supported < 1000
    tokens = tokens_of(tmp_path / "a.txt", tokenizer="bpe", vocabulary_size=supported)
    assert tokens.tokenizer.vocabulary_size == supported


def test_a_vocabulary_without_room_for_the_bytes_is_a_problem() -> None:
    with pytest.raises(Problems, match="257") as raised:
        BpeTokenizer.train([b"text"], 256)
    assert raised.value.exit_code == 2


def test_a_character_that_the_vocabulary_does_not_hold_is_named() -> None:
    for unknown in ("z", "é", "\U0010ffff", "\0"):
        with pytest.raises(Problems) as raised:
            CharTokenizer("abc").encode("ab" + unknown)
        assert raised.value.exit_code == 3
        assert "'abc'" in str(raised.value)


def test_characters_are_numbered_in_their_sorted_order() -> None:
    tokenizer = CharTokenizer("hello\n")
    assert tokenizer.characters == "\nehlo"
    assert tokenizer.encode("hello").tolist() == [2, 1, 3, 3, 4]
    assert tokenizer.dtype == np.uint8


@given(raw=st.binary(max_size=60) | TEXT.map(str.encode))
def test_streamed_text_is_the_whole_text_in_complete_characters(bpe: BpeTokenizer, raw: bytes) -> None:
    stream = StreamDecoder(ByteTokenizer())
    shown = [stream.push(byte) for byte in raw]
    assert "".join(shown) + stream.finish() == raw.decode("utf-8", "replace")
    if "\ufffd" not in raw.decode("utf-8", "replace"):
        stream = StreamDecoder(bpe)
        assert "".join(map(stream.push, bpe.encode(raw).tolist())) == raw.decode()
