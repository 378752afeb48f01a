"""Text -> token files on disk, mapped into memory: found by what decides them, so a stale one can never be
used.

The key is a hash of the raw bytes of every source, the reader's and the tokenizer's settings, and the split.
The files themselves are verified by hash before they are used.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.files import read_small
from ambidex.text.bpe import BpeTokenizer, library_version
from ambidex.text.cache import open_or_build, writing
from ambidex.text.characters import is_continuation
from ambidex.text.corpus import Corpus, Summary, bar, to_json
from ambidex.text.loading import load_tokenizer
from ambidex.text.readers import CHUNK
from ambidex.text.tokenizer import ByteTokenizer, CharTokenizer, Ids, Tokenizer

FORMAT = 1  # raise it when the same text would become other tokens, or other files
LARGEST_MANIFEST = 1 << 24  # bytes; it names every source
KINDS = ("byte", "char", "bpe")


@dataclass(frozen=True)
class Tokens:
    """A text in tokens, split in two. The arrays are memory maps: they cost no memory until they are read."""

    train: Ids  # (train_tokens,)
    validation: Ids  # (validation_tokens,)
    tokenizer: Tokenizer
    data_hash: str  # hex sha256 of both arrays and the tokenizer: equal where, and only where, the tokens are
    train_bytes: int  # of text; with `validation_bytes`, what bits per byte are counted with
    validation_bytes: int
    summary: Summary
    folder: Path

    @property
    def train_tokens(self) -> int:
        return len(self.train)

    @property
    def validation_tokens(self) -> int:
        return len(self.validation)


def prepare(
    data: Sequence[str],
    *,
    tokenizer: str,
    vocabulary_size: int,
    field: str,
    validation_fraction: float,
    cache: Path,
    progress: bool,
) -> Tokens:
    """Tokens of ``data``: from the cache, or built into it.

    ``tokenizer`` is "byte", "char" or "bpe"; ``vocabulary_size`` is used by bpe, the others have their own.
    The last ``validation_fraction`` of the text's bytes is held out. Raises Problems: exit 2 for settings
    that cannot be, 3 for data that cannot be used, 4 for a cache that cannot be written.
    """
    _check_settings(tokenizer, validation_fraction)
    with writing(cache):
        cache.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(data, field, scratch=cache)
    contents = corpus.content_hashes(progress)
    settings = {
        "format": FORMAT,
        "field": field,
        "tokenizer": tokenizer,
        "bpe": [vocabulary_size, library_version()] if tokenizer == "bpe" else None,
        "validation_fraction": validation_fraction,
    }
    key = hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()[:40]

    def build(folder: Path) -> None:
        _build(folder, corpus, _Recipe(tokenizer, vocabulary_size, validation_fraction, progress))
        if corpus.content_hashes(progress) != contents:
            raise Problems(
                Problem("the text was changed while it was being read", fix="start again"), Exit.DATA
            )

    tokens = _open(open_or_build(cache, key, damage, build))
    # The same content may have been prepared under another name: what was given is this call's.
    return replace(tokens, summary=corpus.described(tokens.summary))


def _check_settings(tokenizer: str, validation_fraction: float) -> None:
    problems = []
    if tokenizer not in KINDS:
        meant = did_you_mean(tokenizer, KINDS)
        problems.append(Problem(f"there is no tokenizer {tokenizer!r}", wanted=", ".join(KINDS), fix=meant))
    if not 0 <= validation_fraction < 1:
        problems.append(
            Problem(
                "the held-out fraction cannot be", found=f"{validation_fraction}", wanted="0 <= fraction < 1"
            )
        )
    if problems:
        raise Problems(problems, Exit.USAGE)


@dataclass(frozen=True)
class _Recipe:
    """What is to be made of a corpus."""

    kind: str
    vocabulary_size: int
    validation_fraction: float
    progress: bool


def _build(folder: Path, corpus: Corpus, recipe: _Recipe) -> None:
    """Write a complete entry. The text is streamed to disk once; tokens are made of it part by part."""
    text = folder / "text"
    length = 0
    with text.open("wb") as file, bar("reading the text", None, recipe.progress) as shown:
        for chunk in corpus.text(replace_invalid=recipe.kind != "byte"):
            length += file.write(chunk)
            shown.update(len(chunk))
    cut = _cut(text, length, recipe.validation_fraction)
    tokenizer = _tokenizer(text, length, cut, recipe)
    _encode(tokenizer, _part(text, cut, length, "encoding", recipe.progress), folder / "validation.bin")
    if recipe.kind == "byte":  # the text is its own tokens, so what stays before the cut is the training part
        os.truncate(text, cut)
        text.rename(folder / "train.bin")
    else:
        _encode(tokenizer, _part(text, 0, cut, "encoding", recipe.progress), folder / "train.bin")
        text.unlink()
    tokenizer.save(folder / "tokenizer.json")
    _write_manifest(folder, tokenizer, corpus.summary(length), cut)


def _tokenizer(text: Path, length: int, cut: int, recipe: _Recipe) -> Tokenizer:
    """BPE learns from the training part only; the characters are the whole text's: none is unknown."""
    if recipe.kind == "byte":
        return ByteTokenizer()
    if recipe.kind == "char":
        return CharTokenizer.of_text(_part(text, 0, length, "collecting characters", recipe.progress))
    return BpeTokenizer.train(
        _part(text, 0, cut, "training the tokenizer", recipe.progress), recipe.vocabulary_size
    )


def _encode(tokenizer: Tokenizer, chunks: Iterator[bytes], path: Path) -> None:
    with path.open("wb") as file:
        for ids in tokenizer.encode_stream(chunks):
            file.write(ids.tobytes())


def _part(text: Path, start: int, stop: int, what: str, progress: bool) -> Iterator[bytes]:
    """The bytes ``start .. stop`` of a file, in chunks."""
    with text.open("rb") as file, bar(what, stop - start, progress) as shown:
        file.seek(start)
        while chunk := file.read(min(CHUNK, stop - file.tell())):
            shown.update(len(chunk))
            yield chunk


def _cut(text: Path, length: int, validation_fraction: float) -> int:
    """Where the held-out tail begins, in bytes: not within a character, and the same for every tokenizer."""
    cut = int(length * (1 - validation_fraction))
    with text.open("rb") as file:
        file.seek(cut)
        following = file.read(3)
    while following and is_continuation(following[0]):
        cut, following = cut + 1, following[1:]
    return cut


def _write_manifest(folder: Path, tokenizer: Tokenizer, summary: Summary, cut: int) -> None:
    files = {
        name: {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
        for name in ("train.bin", "validation.bin", "tokenizer.json")
    }
    hashes = [files[name]["sha256"] for name in sorted(files)]
    manifest = {
        "format": FORMAT,
        "data_hash": hashlib.sha256(json.dumps(hashes).encode()).hexdigest(),
        "dtype": np.dtype(tokenizer.dtype).name,
        "train_bytes": cut,
        "validation_bytes": summary.bytes - cut,
        "summary": to_json(summary),
        "files": files,
    }
    manifest["sha256"] = _own_hash(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _own_hash(manifest: dict[str, Any]) -> str:
    """Of all that a manifest says, so that a flipped bit in the manifest itself is seen as well."""
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def damage(folder: Path) -> str:
    """What is wrong with an entry of the cache, or "": every size and every hash is checked."""
    name = "manifest.json"
    try:
        manifest = json.loads(read_small(folder / name, LARGEST_MANIFEST))
        if manifest["sha256"] != _own_hash(manifest):
            return f"{name}: is not as written"
        for name, wanted in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != wanted["size"]:
                return f"{name}: {size} bytes instead of {wanted['size']}"
            if _sha256(folder / name) != wanted["sha256"]:
                return f"{name}: sha256 mismatch"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return f"{name}: {getattr(error, 'strerror', None) or type(error).__name__}"
    return ""


def _open(folder: Path) -> Tokens:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    summary: dict[str, Any] = manifest["summary"] | {"data": tuple(manifest["summary"]["data"])}
    return Tokens(
        train=_mapped(folder / "train.bin", manifest["dtype"]),
        validation=_mapped(folder / "validation.bin", manifest["dtype"]),
        tokenizer=load_tokenizer(folder / "tokenizer.json"),
        data_hash=manifest["data_hash"],
        train_bytes=manifest["train_bytes"],
        validation_bytes=manifest["validation_bytes"],
        summary=Summary(**summary),
        folder=folder,
    )


def _mapped(path: Path, dtype: str) -> Ids:
    if not path.stat().st_size:  # the system maps no empty file
        return np.empty(0, dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
