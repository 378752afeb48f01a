"""Preparing: the split, the hash, and a cache that cannot be stale."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ambidex.errors import Problems
from ambidex.text import Tokens
from ambidex.text import tokens as room
from ambidex.text.batches import Batches
from ambidex.text.cache import default_cache
from ambidex.text.corpus import Corpus

TokensOf = Callable[..., Tokens]
KINDS = ["byte", "char", "bpe"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("The quick brown fox, 狐, jumps over the lazy dog.\n" * 200, encoding="utf-8")
    return path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that are built while the test runs."""
    built: list[Path] = []
    build = room._build

    def noting(folder: Path, *rest: Any) -> None:
        built.append(folder)
        build(folder, *rest)

    monkeypatch.setattr(room, "_build", noting)
    return built


@pytest.mark.parametrize("kind", KINDS)
def test_both_parts_together_are_the_text_and_each_decodes_alone(
    kind: str, text: Path, tokens_of: TokensOf
) -> None:
    tokens = tokens_of(text, tokenizer=kind)
    train, held_out = (tokens.tokenizer.decode(part) for part in (tokens.train, tokens.validation))
    assert train + held_out == text.read_bytes()
    assert (len(train), len(held_out)) == (tokens.train_bytes, tokens.validation_bytes)
    assert (len(tokens.train), len(tokens.validation)) == (tokens.train_tokens, tokens.validation_tokens)
    assert train.decode()
    assert held_out.decode()


def test_the_held_out_text_is_the_same_whatever_the_tokenizer(text: Path, tokens_of: TokensOf) -> None:
    for fraction in (0.0, 0.05, 0.1, 0.5, 0.9):
        assert (
            len({tokens_of(text, tokenizer=kind, validation_fraction=fraction).train_bytes for kind in KINDS})
            == 1
        )


@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
def test_the_cut_is_never_within_a_character(fraction: float, tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "a.txt").write_text("葉👩é" * 11, encoding="utf-8")
    tokens = tokens_of(tmp_path / "a.txt", validation_fraction=fraction)
    assert (tokens.train.tobytes() + tokens.validation.tobytes()).decode() == "葉👩é" * 11
    assert tokens.train.tobytes().decode()
    assert tokens.validation.tobytes().decode()


def test_characters_are_split_as_nanogpt_splits_them(tmp_path: Path, tokens_of: TokensOf) -> None:
    written = "First Citizen:\nBefore we proceed any further, hear me speak.\n" * 37
    (tmp_path / "input.txt").write_text(written)
    tokens = tokens_of(tmp_path / "input.txt", tokenizer="char", validation_fraction=0.1)
    number = {character: place for place, character in enumerate(sorted(set(written)))}
    ids = [number[character] for character in written]
    cut = int(len(ids) * 0.9)
    assert tokens.train.tolist() == ids[:cut]
    assert tokens.validation.tolist() == ids[cut:]


@pytest.mark.parametrize(("kind", "dtype"), [("byte", np.uint8), ("char", np.uint8), ("bpe", np.uint16)])
def test_tokens_are_mapped_in_the_smallest_type(
    kind: str, dtype: type, text: Path, tokens_of: TokensOf
) -> None:
    tokens = tokens_of(text, tokenizer=kind)
    assert tokens.train.dtype == tokens.validation.dtype == dtype
    assert isinstance(tokens.train, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens.train[0] = 1


def test_the_second_time_nothing_is_built(text: Path, tokens_of: TokensOf, builds: list[Path]) -> None:
    first, second = tokens_of(text), tokens_of(text)
    assert len(builds) == 1
    assert first.data_hash == second.data_hash
    assert first.summary == second.summary
    assert len(first.data_hash) == 64


def test_an_edit_that_keeps_size_and_time_is_seen(text: Path, tokens_of: TokensOf) -> None:
    before, status = tokens_of(text), text.stat()
    content = text.read_bytes()
    text.write_bytes(content.replace(b"fox", b"cat", 1))
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (text.stat().st_size, text.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    after = tokens_of(text)
    assert after.data_hash != before.data_hash
    assert b"cat" in after.tokenizer.decode(after.train)


@pytest.mark.parametrize(
    "change",
    [{"tokenizer": "char"}, {"tokenizer": "bpe"}, {"validation_fraction": 0.2}],
    ids=["char", "bpe", "fraction"],
)
def test_every_setting_that_decides_tokens_changes_the_hash(
    change: dict[str, Any], text: Path, tokens_of: TokensOf
) -> None:
    assert tokens_of(text).data_hash != tokens_of(text, **change).data_hash


def test_the_vocabulary_size_decides_for_bpe_alone(
    text: Path, tokens_of: TokensOf, builds: list[Path]
) -> None:
    sizes = (260, 261)
    assert len({tokens_of(text, tokenizer="bpe", vocabulary_size=size).data_hash for size in sizes}) == 2
    assert len({tokens_of(text, vocabulary_size=size).data_hash for size in sizes}) == 1
    assert len(builds) == 3


def test_another_field_of_the_same_file_is_another_text(tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"a": "one " * 9, "b": "two " * 9}))
    for field, word in (("a", b"one "), ("b", b"two ")):
        tokens = tokens_of(tmp_path / "a.jsonl", field=field, validation_fraction=0.0)
        assert tokens.tokenizer.decode(tokens.train) == word * 9


def test_the_hash_is_of_the_tokens_not_of_where_they_came_from(
    text: Path, tmp_path: Path, tokens_of: TokensOf, builds: list[Path]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(text, tmp_path / "elsewhere" / "other.md")
    assert tokens_of(text).data_hash == tokens_of(tmp_path / "elsewhere" / "other.md").data_hash
    assert len(builds) == 2


def test_a_text_that_changes_while_it_is_read_is_a_problem(
    text: Path, tokens_of: TokensOf, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    honest = Corpus.text

    def meddled(self: Corpus, replace_invalid: bool) -> Any:
        text.write_text("something else entirely " * 50)
        return honest(self, replace_invalid)

    monkeypatch.setattr(Corpus, "text", meddled)
    with pytest.raises(Problems, match="changed while it was being read") as raised:
        tokens_of(text)
    assert raised.value.exit_code == 3
    assert not [path for path in cache.iterdir() if path.name != "locks"]


@pytest.mark.parametrize("name", ["train.bin", "validation.bin", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("how", ["bit", "cut", "gone"])
def test_a_damaged_entry_is_built_again_and_said(
    name: str, how: str, text: Path, tokens_of: TokensOf, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tokens_of(text)
    path, expected = good.folder / name, np.array(good.train)
    content = bytearray(path.read_bytes())
    if how == "gone":
        path.unlink()
    else:
        content[0] ^= 0x80
        path.write_bytes(content if how == "bit" else content[:-7])
    again = tokens_of(text)
    assert again.data_hash == good.data_hash
    np.testing.assert_array_equal(again.train, expected)
    said = capsys.readouterr().err
    assert said.count("building it again") == 1
    assert f"is damaged ({name}" in said


def test_a_flipped_bit_anywhere_in_an_entrys_manifest_is_found(text: Path, tokens_of: TokensOf) -> None:
    path = tokens_of(text).folder / "manifest.json"
    content = path.read_bytes()
    before = json.loads(content)
    assert room.damage(path.parent) == ""
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        with suppress(ValueError):
            if json.loads(changed) == before:  # white space, or an escape spelled otherwise
                continue
        assert room.damage(path.parent).startswith("manifest.json"), place


def test_the_text_is_not_kept_beside_its_tokens(text: Path, tokens_of: TokensOf) -> None:
    tokens = tokens_of(text, tokenizer="char")
    names = sorted(path.name for path in tokens.folder.iterdir())
    assert names == ["manifest.json", "tokenizer.json", "train.bin", "validation.bin"]
    manifest = json.loads((tokens.folder / "manifest.json").read_text())
    for name, file in manifest["files"].items():
        assert file["sha256"] == hashlib.sha256((tokens.folder / name).read_bytes()).hexdigest()


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.1), (1, 0.0), (2, 0.5), (3, 0.99)])
@pytest.mark.parametrize("kind", ["byte", "char"])
def test_the_shortest_texts_are_prepared_and_then_refused_for_a_context(
    kind: str, size: int, fraction: float, tmp_path: Path, tokens_of: TokensOf
) -> None:
    (tmp_path / "a.txt").write_text("abc"[:size])
    tokens = tokens_of(tmp_path / "a.txt", tokenizer=kind, validation_fraction=fraction)
    assert tokens.train_tokens + tokens.validation_tokens == size
    with pytest.raises(Problems, match="shorter than one sequence"):
        Batches(tokens, 8, 1, 0)


def test_records_without_any_text_are_a_problem(tmp_path: Path, tokens_of: TokensOf) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n\n{"text": ""}\n')
    with pytest.raises(Problems, match="no text in") as raised:
        tokens_of(tmp_path / "a.jsonl")
    assert raised.value.exit_code == 3


def test_impossible_settings_are_said_together(text: Path, tokens_of: TokensOf) -> None:
    with pytest.raises(Problems) as raised:
        tokens_of(text, tokenizer="bep", validation_fraction=1.5)
    assert raised.value.exit_code == 2
    assert len(raised.value.problems) == 2
    assert "did you mean 'bpe'?" in str(raised.value)


def test_the_cache_lies_where_the_variable_or_the_system_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert default_cache({"AMBIDEX_CACHE": "/x", "XDG_CACHE_HOME": "/y"}, "linux") == Path("/x")
    assert default_cache({"XDG_CACHE_HOME": "/y"}, "linux") == Path("/y/ambidex")
    assert default_cache({"XDG_CACHE_HOME": "relative"}, "linux") == tmp_path / ".cache/ambidex"
    assert default_cache({}, "linux") == tmp_path / ".cache/ambidex"
    assert default_cache({}, "darwin") == tmp_path / "Library/Caches/ambidex"
    assert default_cache({"LOCALAPPDATA": "/local"}, "win32") == Path("/local/ambidex/cache")


def test_what_is_said_of_a_text_is_what_was_given_now_and_not_by_whoever_prepared_it(
    tmp_path: Path, tokens_of: TokensOf, builds: list[Path]
) -> None:
    for name, besides in (("first", ".hidden"), ("second", "noise.bin")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("to be or not to be\n" * 200)
        (tmp_path / name / besides).write_bytes(bytes(9))
    first, second = tokens_of(tmp_path / "first"), tokens_of(tmp_path / "second")
    assert len(builds) == 1
    assert first.data_hash == second.data_hash
    assert (second.summary.data, second.summary.skipped) == ((str(tmp_path / "second"),), {"binary": 1})
    assert first.summary.skipped == {"hidden": 1}
