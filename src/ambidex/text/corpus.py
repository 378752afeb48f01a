"""The corpus: documents in their order, as one stream of bytes, and what is said of it.

Between two documents stands one NUL byte: no text holds one (files that do are taken for binary), every
tokenizer knows it, and a model learns from it where a document ends. A single document is its own bytes and
nothing else.
"""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.readers import Document, Source
from ambidex.text.sources import describe_skipped, find_sources, spelled

END_OF_DOCUMENT = b"\0"
_MOST_PROBLEMS = 20  # a folder of ten thousand broken files needs no ten thousand sentences


@dataclass(frozen=True)
class Summary:
    """What the text is made of, for the plan and the card."""

    data: tuple[str, ...]  # as given
    sources: int  # files, streams, data sets
    documents: int
    bytes: int  # of text, after decompression, separators included
    replaced: int  # documents in which bytes that are no UTF-8 were replaced by U+FFFD
    skipped: dict[str, int]  # reason -> number of files

    def __str__(self) -> str:
        parts = [
            f"{', '.join(map(spelled, self.data))}: {self.documents:,} document{'s' * (self.documents != 1)}, {self.bytes:,} bytes"
        ]
        if self.replaced:
            parts.append(
                f"bytes that are no UTF-8 replaced by U+FFFD in {self.replaced:,} document{'s' * (self.replaced != 1)}"
            )
        if skipped := describe_skipped(self.skipped):
            parts.append(f"passed over: {skipped}")
        return "; ".join(parts)


class Corpus:
    """What ``--data`` names. ``field`` is the JSON field or Parquet column that holds the text."""

    def __init__(self, data: Sequence[str], field: str, scratch: Path) -> None:
        found = find_sources(data, scratch)
        self.data = tuple(data)
        self.field = field
        self.sources: list[Source] = found.sources
        self.skipped: dict[str, int] = {reason: number for reason, number in found.skipped.items() if number}
        self.documents = 0  # both are counted while `text` is read
        self.replaced = 0

    def content_hashes(self, progress: bool) -> list[tuple[str, str, str]]:
        """(name, reader, sha256 of the raw bytes) of each source, in order.

        Read in full every time. A memo by size and time would save a second a gigabyte, and would miss an
        edit that keeps both: within one tick of the clock, through a memory map, or by a tool that sets the
        time back.
        """
        hashes = []
        with bar("checking the text", sum(source.size for source in self.sources), progress) as shown:
            for source in self.sources:
                sha256 = hashlib.sha256()
                for chunk in source.content():
                    sha256.update(chunk)
                    shown.update(len(chunk))
                hashes.append((source.name, type(source).__name__, sha256.hexdigest()))
        return hashes

    def text(self, replace_invalid: bool) -> Iterator[bytes]:
        """All documents, joined, in chunks. With ``replace_invalid`` the whole is valid UTF-8.

        Raises Problems (exit 3), at the end, with everything that is wrong with any of the sources.
        """
        problems: list[Problem] = []
        self.documents = self.replaced = 0
        for source in self.sources:
            try:
                for document in source.documents(self.field):
                    yield from self._document(document, replace_invalid)
            except Problems as more:
                problems += more.problems
        if not problems and not self.documents:
            problems.append(Problem(f"no text in {', '.join(map(spelled, self.data))}", fix="give more text"))
        if problems:
            rest = len(problems) - _MOST_PROBLEMS
            more_like_these = [Problem(f"and {rest} more")] if rest > 0 else []
            raise Problems(problems[:_MOST_PROBLEMS] + more_like_these, Exit.DATA)

    def _document(self, document: Document, replace_invalid: bool) -> Iterator[bytes]:
        begun = False
        for chunk in self._valid(document) if replace_invalid else document:
            if not chunk:
                continue
            if not begun and self.documents:
                yield END_OF_DOCUMENT
            self.documents += not begun
            begun = True
            yield chunk

    def _valid(self, document: Document) -> Document:
        decoder = codecs.getincrementaldecoder("utf-8")("strict")
        for chunk, last in _with_last(document):
            try:
                text = decoder.decode(chunk, last)
            except UnicodeDecodeError:
                # A strict decoder that has raised still holds what it held, so the chunk can be given again.
                self.replaced += 1
                decoder.errors = "replace"
                text = decoder.decode(chunk, last)
            yield text.encode()

    def summary(self, text_bytes: int) -> Summary:
        """Of the text as it was last read."""
        return Summary(self.data, len(self.sources), self.documents, text_bytes, self.replaced, self.skipped)

    def described(self, prepared: Summary) -> Summary:
        """The summary of a text that was prepared before, with what this corpus was given and passed over."""
        return replace(prepared, data=self.data, sources=len(self.sources), skipped=self.skipped)


def _with_last(document: Document) -> Iterator[tuple[bytes, bool]]:
    for chunk in document:
        yield chunk, False
    yield b"", True


def bar(what: str, total: int | None, progress: bool) -> tqdm[None]:
    """A progress bar in bytes on standard error, which work that is done within half a second never shows."""
    return tqdm(
        total=total,
        desc=what,
        unit="B",
        unit_scale=True,
        disable=not progress,
        delay=0.5,
        leave=False,
        dynamic_ncols=True,
    )


def to_json(summary: Summary) -> dict[str, object]:
    """For the manifest."""
    return asdict(summary)
