"""Text -> token files on disk, mapped into memory: found by what decides them, so a stale one can never be
used.

The key is a hash of the raw bytes of every source, the reader's and the tokenizer's settings, and the split.
The files themselves are verified by hash before they are used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.text.cache import open_or_build, writing
from ambidex.text.corpus import Corpus, Summary, bar, to_json
from ambidex.text.readers import CHUNK
from ambidex.text.tokenizer import ByteTokenizer, Ids, Tokenizer, load_tokenizer

FORMAT = 1  # raise it when the same text would become other tokens, or other files
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
        "vocabulary_size": vocabulary_size if tokenizer == "bpe" else None,
        "validation_fraction": validation_fraction,
    }
    key = hashlib.sha256(json.dumps([settings, contents]).encode()).hexdigest()[:40]

    def build(folder: Path) -> None:
        _build(folder, corpus, tokenizer, vocabulary_size, validation_fraction, progress)
        if corpus.content_hashes(progress) != contents:
            raise Problems(
                Problem("the text was changed while it was being read", fix="start again"), Exit.DATA
            )

    return _open(open_or_build(cache, key, damage, build))


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


def _build(
    folder: Path, corpus: Corpus, kind: str, vocabulary_size: int, validation_fraction: float, progress: bool
) -> None:
    """Write a complete entry: the text is streamed to disk once, split there, and each part encoded from there."""
    text = folder / "train.bin"
    length = 0
    with text.open("wb") as file, bar("reading the text", None, progress) as shown:
        for chunk in corpus.text(replace_invalid=kind != "byte"):
            length += file.write(chunk)
            shown.update(len(chunk))
    cut = _cut(text, length, validation_fraction)
    tokenizer = ByteTokenizer()
    with text.open("rb+") as file, (folder / "validation.bin").open("wb") as held_out:
        file.seek(cut)
        while chunk := file.read(CHUNK):
            held_out.write(chunk)
        file.truncate(cut)
    tokenizer.save(folder / "tokenizer.json")
    _write_manifest(folder, tokenizer, corpus.summary(length), cut)


def _cut(text: Path, length: int, validation_fraction: float) -> int:
    """Where the held-out tail begins, in bytes: not within a character, and the same for every tokenizer."""
    cut = int(length * (1 - validation_fraction))
    with text.open("rb") as file:
        file.seek(cut)
        following = file.read(3)
    while following and following[0] & 0xC0 == 0x80:  # a continuation byte of UTF-8
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
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def damage(folder: Path) -> str:
    """What is wrong with an entry of the cache, or "": every size and every hash is checked."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}"
        for name, wanted in manifest["files"].items():
            size = (folder / name).stat().st_size
            if size != wanted["size"]:
                return f"{name}: {size} bytes instead of {wanted['size']}"
            if _sha256(folder / name) != wanted["sha256"]:
                return f"{name}: sha256 mismatch"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"manifest.json: {error or type(error).__name__}"
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
