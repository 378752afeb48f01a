"""Text <-> token ids, behind one small class: bytes, characters, or byte-level BPE. Written and read as JSON.

`decode(encode(x)) == x` for every valid UTF-8 text; no tokenizer adds a token of its own, changes case or
spaces, or cleans up. Bytes that are no UTF-8 are kept by the byte tokenizer and become U+FFFD in the other
two.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(ABC):
    """``kind`` is "byte", "char" or "bpe"; ``vocabulary_size`` counts ids, which are ``0 ..

    vocabulary_size-1``.
    """

    kind: str
    vocabulary_size: int
    end_of_document: (
        int | None
    )  # the id that stands between two documents; None where the vocabulary has none

    @abstractmethod
    def encode(self, text: str | bytes) -> Ids:
        """Ids, (tokens,), of `dtype`."""

    @abstractmethod
    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; they need not be whole characters."""

    @abstractmethod
    def to_json(self) -> str:
        """What `load_tokenizer` reads."""

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
    def dtype(self) -> npt.DTypeLike:
        """The smallest unsigned type that holds every id."""
        return np.min_scalar_type(self.vocabulary_size - 1)

    def save(self, path: Path) -> None:
        """Write the tokenizer as JSON."""
        path.write_text(self.to_json(), encoding="utf-8")


class ByteTokenizer(Tokenizer):
    """A byte is a token, and its value is the id."""

    kind = "byte"
    vocabulary_size = 256
    end_of_document = 0

    def encode(self, text: str | bytes) -> Ids:
        return np.frombuffer(text.encode() if isinstance(text, str) else text, dtype=np.uint8)

    def decode(self, ids: Sequence[int] | npt.NDArray[np.integer[Any]]) -> bytes:
        return np.asarray(ids).astype(np.uint8).tobytes()

    def token_bytes(self, token: int) -> bytes:
        return bytes([token])

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"})


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that `Tokenizer.save` wrote."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return ByteTokenizer()
