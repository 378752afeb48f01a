"""Byte-level BPE with GPT-2's rule for words, trained on the text itself with the `tokenizers` library.

Every byte is in the vocabulary, so there is no unknown text. Ids are turned back into bytes by our own table:
the library's decoder returns a string, which a token that ends within a character cannot be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.characters import pieces
from ambidex.text.tokenizer import PIECE, Ids, Tokenizer

SMALLEST = 257  # the bytes and the end of a document
_END_OF_DOCUMENT = "\0"
_AT_ONCE = 32  # pieces that the library's threads share out among themselves; more would only cost memory


class BpeTokenizer(Tokenizer):
    """Wraps a `tokenizers.Tokenizer`; its JSON is the library's own tokenizer.json."""

    kind = "bpe"

    def __init__(self, model: Any) -> None:
        self._model = model
        self.vocabulary_size = model.get_vocab_size()
        self.end_of_document = model.token_to_id(_END_OF_DOCUMENT)
        alphabet = byte_alphabet()
        self._bytes = [b""] * self.vocabulary_size
        for token, number in model.get_vocab().items():
            special = number == self.end_of_document
            self._bytes[number] = token.encode() if special else bytes(alphabet[char] for char in token)

    @classmethod
    def from_json(cls, text: str) -> BpeTokenizer:
        """Raises ValueError where the text is no byte-level tokenizer of the library."""
        try:
            return cls(_library().Tokenizer.from_str(text))
        except (Problems, ValueError):
            raise
        except Exception as error:  # the library raises bare Exception
            raise ValueError(str(error)) from None
        except BaseException as error:  # and its Rust part, where it did not foresee a file, a BaseException
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError("the tokenizers library cannot digest it") from None

    @classmethod
    def train(cls, chunks: Iterable[bytes], vocabulary_size: int) -> BpeTokenizer:
        """Trained on valid UTF-8: the same text gives the same tokenizer, whatever the number of threads.

        Raises Problems: exit 2 for fewer tokens than there are bytes, 3 for more than the text supports.
        """
        if vocabulary_size < SMALLEST:
            raise Problems(
                Problem(
                    "the BPE vocabulary is too small",
                    found=f"{vocabulary_size}",
                    wanted=f"at least {SMALLEST}: every byte, and the end of a document",
                    fix=f"--vocabulary-size {SMALLEST} or more, or --tokenizer byte",
                ),
                Exit.USAGE,
            )
        library = _library()
        model = library.Tokenizer(library.models.BPE())
        byte_level = library.pre_tokenizers.ByteLevel
        model.pre_tokenizer = byte_level(add_prefix_space=False)
        model.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,  # a pair that the text holds once teaches nothing
            show_progress=False,
            special_tokens=[library.AddedToken(_END_OF_DOCUMENT, normalized=False, special=True)],
            initial_alphabet=sorted(byte_level.alphabet()),
        )
        model.train_from_iterator((piece.decode() for piece in pieces(chunks, PIECE)), trainer)
        tokenizer = cls(model)
        if tokenizer.vocabulary_size < vocabulary_size:
            raise Problems(
                Problem(
                    "the training text is too short for such a BPE vocabulary",
                    found=f"{vocabulary_size} tokens asked for",
                    wanted=f"at most {tokenizer.vocabulary_size}, which is all that this text supports",
                    fix=f"--vocabulary-size {tokenizer.vocabulary_size}, or more text",
                ),
                Exit.DATA,
            )
        return tokenizer

    def encode_stream(self, chunks: Iterable[bytes]) -> Iterator[Ids]:
        waiting = (piece.decode() for piece in pieces(chunks, PIECE))
        while some := list(islice(waiting, _AT_ONCE)):
            for encoding in self._model.encode_batch_fast(some, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=self.dtype)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token]

    def to_json(self) -> str:
        return str(self._model.to_str())


def library_version() -> str:
    """The version of the library that trains: another one may choose other merges."""
    return str(_library().__version__)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError:
        raise Problems(
            Problem(
                "BPE needs the tokenizers library", found="not installed", fix='pip install "ambidex[train]"'
            ),
            Exit.USAGE,
        ) from None
    return tokenizers


def byte_alphabet() -> dict[str, int]:
    """GPT-2's bytes as printable characters: visible Latin-1 stands for itself, the rest from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + n): byte for n, byte in enumerate(hidden)}
