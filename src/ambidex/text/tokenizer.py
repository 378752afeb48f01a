"""Text <-> token ids, behind one small class: bytes, characters, or byte-level BPE. Written and read as JSON.

`decode(encode(x)) == x` for every valid UTF-8 text that the vocabulary covers: bytes and BPE cover all. No
tokenizer adds a token of its own, changes case or spaces, or cleans up. Bytes that are no UTF-8 are kept by
the byte tokenizer and become U+FFFD in the other two.
"""

from __future__ import annotations

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.characters import pieces, utf8

PIECE = 1 << 16  # bytes that are encoded at once

Ids = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(ABC):
    """``kind`` is "byte", "char" or "bpe"; ids are ``0 .. vocabulary_size-1``."""

    kind: str
    vocabulary_size: int
    end_of_document: (
        int | None
    )  # the id that stands between two documents; None where the vocabulary has none

    @abstractmethod
    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Ids]:
        """Ids, in arrays (tokens,), of valid UTF-8 in chunks of any length, on which the ids do not depend.

        Raises Problems (exit 3) for a character that the vocabulary does not hold.
        """

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; they need not be whole characters."""

    @abstractmethod
    def to_json(self) -> str:
        """What `load_tokenizer` reads."""

    def encode(self, text: str | bytes) -> Ids:
        """Ids, (tokens,), of `dtype`. Raises Problems as `encode_stream` does."""
        raw = utf8(text) if isinstance(text, str) else text.decode("utf-8", "replace").encode()
        return np.concatenate([np.empty(0, dtype=self.dtype), *self.encode_stream([raw])])

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> bytes:
        """The text of ids (tokens,), as bytes: a model's tokens need not add up to valid UTF-8."""
        return b"".join(map(self.token_bytes, np.asarray(ids).tolist()))

    @cached_property
    def token_lengths(self) -> npt.NDArray[np.int64]:
        """Bytes in each token, (vocabulary_size,): what bits per byte are counted with."""
        return np.array(
            [len(self.token_bytes(token)) for token in range(self.vocabulary_size)], dtype=np.int64
        )

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """The smallest unsigned type that holds every id."""
        return np.min_scalar_type(self.vocabulary_size - 1)

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON, with the same bytes on every system."""
        path.write_bytes(self.to_json().encode())


class ByteTokenizer(Tokenizer):
    """A byte is a token, and its value is the id."""

    kind = "byte"
    vocabulary_size = 256
    end_of_document = 0

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Ids]:
        return (np.frombuffer(chunk, dtype=np.uint8) for chunk in chunks)

    def encode(self, text: str | bytes) -> Ids:
        return np.frombuffer(utf8(text) if isinstance(text, str) else text, dtype=np.uint8)

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind})


class CharTokenizer(Tokenizer):
    """A character (a Unicode code point) is a token; the ids are the places in the sorted vocabulary."""

    kind = "char"

    def __init__(self, characters: Iterable[str]) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.vocabulary_size = len(self.characters)
        self.end_of_document = 0 if self.characters.startswith("\0") else None
        self._ids = np.full(sys.maxunicode + 1, self.vocabulary_size, dtype=np.uint32)  # (code points,)
        self._ids[_code_points(self.characters.encode())] = np.arange(self.vocabulary_size)

    @classmethod
    def of_text(cls, chunks: Iterable[bytes]) -> CharTokenizer:
        """With the characters of a text: valid UTF-8, not empty."""
        seen = np.zeros(sys.maxunicode + 1, dtype=bool)  # (code points,)
        for piece in pieces(chunks, PIECE):
            seen[_code_points(piece)] = True
        return cls(map(chr, np.flatnonzero(seen).tolist()))

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Ids]:
        for piece in pieces(chunks, PIECE):
            points = _code_points(piece)
            ids = self._ids[points]
            unknown = ids == self.vocabulary_size
            if unknown.any():
                raise Problems(self._not_held(sorted(map(chr, set(points[unknown].tolist())))), Exit.DATA)
            yield ids.astype(self.dtype)

    def token_bytes(self, token: int) -> bytes:
        return self.characters[token].encode()

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "characters": self.characters})

    def _not_held(self, unknown: list[str]) -> Problem:
        shown = self.characters[:100] + ("..." if self.vocabulary_size > 100 else "")
        return Problem(
            "the vocabulary, which is the training text's characters, does not hold every character",
            found=repr("".join(unknown[:20])) + (" ..." if len(unknown) > 20 else ""),
            wanted=f"only {shown.strip()!r}",
            fix="leave those out; a model trained with --tokenizer byte knows every character",
        )


def _code_points(text: bytes) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.decode().encode("utf-32-le"), dtype="<u4").astype(np.uint32)
