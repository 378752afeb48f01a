"""One place where text lies -> its documents, streamed: plain text, JSON lines, Parquet, each also gzipped.

A document is a stream of chunks of UTF-8 bytes, so a file of any size, compressed or not, passes through in a
few megabytes of memory. Whatever is wrong with a file is collected over the whole file and raised once, as
Problems (exit 3).
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import shutil
import tempfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from ambidex.errors import Exit, Problem, Problems, did_you_mean
from ambidex.text.binary import binary_sign
from ambidex.text.characters import utf8

CHUNK = 1 << 20  # bytes read at once
LONGEST_LINE = 1 << 28  # a JSON line must be parsed whole, so it is the one thing that memory must hold
MOST_UNPACKED, SMALLEST_BOMB = 200, 1 << 28  # times the packed size, and bytes that are allowed to any file
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) if hasattr(errno, "EDQUOT") else (errno.ENOSPC,)
SHOWN = 5  # problems of one kind that are spelled out for one file; the rest are counted

Document = Iterator[bytes]  # chunks


class Source(ABC):
    """One place where text lies. ``name`` decides its place in the corpus and is how messages call it."""

    name: str
    size: int  # bytes as they lie on disk, for progress bars

    @abstractmethod
    def content(self) -> Iterator[bytes]:
        """The raw bytes that decide the documents, for hashing."""

    @abstractmethod
    def documents(self, field: str) -> Iterator[Document]:
        """The texts, in their order. Each must be read before the next is asked for."""


@dataclass(frozen=True)
class Passage(Source):
    """A text that is already in memory."""

    name: str
    text: bytes

    @property
    def size(self) -> int:  # type: ignore[override]
        return len(self.text)

    def content(self) -> Iterator[bytes]:
        yield self.text

    def documents(self, field: str) -> Iterator[Document]:  # noqa: ARG002 - a text has no fields
        yield iter([self.text])


@dataclass(frozen=True)
class Stream(Source):
    """Standard input or a pipe. It can be read only once, so ``spooled`` is a nameless file that holds it."""

    name: str
    size: int
    spooled: IO[bytes]

    def content(self) -> Iterator[bytes]:
        self.spooled.seek(0)
        return _chunks(self.spooled)

    def documents(self, field: str) -> Iterator[Document]:  # noqa: ARG002
        yield self.content()


class _Unpacked(io.RawIOBase):
    """A gzipped file's content, up to the point where it can no longer be text: then Problems (exit 3).

    A text packs to a quarter, a log to a fiftieth. What packs to a thousandth is nothing to learn from and may be
    a trap: ten megabytes that unpack to ten gigabytes.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._file = gzip.open(path, "rb")  # noqa: SIM115
        self._most = max(SMALLEST_BOMB, MOST_UNPACKED * path.stat().st_size)
        self._name, self._unpacked = name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._file.read1(len(buffer))
        self._unpacked += len(content)
        if self._unpacked > self._most:
            raise Problems(
                Problem(f"{self._name} unpacks to more than a text can", found=f"more than {self._most:,} bytes",
                        wanted=f"at most {MOST_UNPACKED} times its size", fix="unpack it by hand, if it is what you mean"),
                Exit.DATA,
            )  # fmt: skip
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


@dataclass(frozen=True)
class TextFile(Source):
    """A file that is one document, byte for byte."""

    name: str
    path: Path
    size: int
    gzipped: bool = False

    def content(self) -> Iterator[bytes]:
        with reading(self), self.path.open("rb") as file:
            yield from _chunks(file)

    def documents(self, field: str) -> Iterator[Document]:  # noqa: ARG002
        yield self._text()

    def _text(self) -> Document:
        with reading(self), self.unpacked() as file:
            yield from _chunks(file)

    def unpacked(self) -> IO[bytes]:
        """The file, opened, as it is after decompression."""
        if not self.gzipped:
            return self.path.open("rb")
        return cast(IO[bytes], io.BufferedReader(_Unpacked(self.path, self.name), CHUNK))


class JsonLines(TextFile):
    """A file with one JSON object a line, of which ``field`` is a document.

    Blank lines and null texts hold none.
    """

    def documents(self, field: str) -> Iterator[Document]:
        problems: list[Problem] = []
        bad = number = 0
        with reading(self), self.unpacked() as file:
            while line := file.readline(LONGEST_LINE):
                number += 1
                if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff", b"\0\0"):
                    raise Problems(
                        Problem(f"{self.name} is no UTF-8", found=binary_sign(line), wanted="one JSON object a line"), Exit.DATA
                    )  # fmt: skip
                found = self._text_of(line, field, number)
                if isinstance(found, Problem):
                    bad += 1
                    problems += [found] if bad <= SHOWN else []
                elif found:
                    yield iter([found])
                if len(line) == LONGEST_LINE:
                    break
        if bad > SHOWN:
            problems.append(Problem(f"{self.name}: {bad - SHOWN} more lines like these"))
        if problems:
            raise Problems(problems, Exit.DATA)

    def _text_of(self, line: bytes, field: str, number: int) -> bytes | Problem | None:
        where = f"{self.name}, line {number}"
        if len(line) == LONGEST_LINE:
            return Problem(
                f"{where} is too long", found=f"{LONGEST_LINE} bytes", wanted="one JSON object a line"
            )
        text = line.decode("utf-8-sig" if number == 1 else "utf-8", "replace")
        if not text.strip():
            return None
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            if isinstance(error, ValueError) and not isinstance(error, json.JSONDecodeError):
                reason = "a whole number of thousands of digits"  # Python's own limit, and the one other error there is
            return Problem(f"{where} is not JSON", found=reason, wanted="one JSON object a line")
        if not isinstance(row, dict):
            return Problem(
                f"{where} is not an object", found=type(row).__name__, wanted="one JSON object a line"
            )
        if field not in row:
            return missing_field(where, "field", field, list(row))
        return self._text_in(row[field], f"{where}: field {field!r}")

    def _text_in(self, value: object, where: str) -> bytes | Problem | None:
        if value is None:
            return None
        if not isinstance(value, str):
            return Problem(f"{where} is no text", found=type(value).__name__, wanted="a string")
        return utf8(value)


class Parquet(TextFile):
    """A Parquet file, of which the column ``field`` holds a document a row. Nulls hold none."""

    def documents(self, field: str) -> Iterator[Document]:
        parquet = pyarrow_parquet(self.name)
        with reading(self), self._seekable() as file:
            # pyarrow tells bad input by many exceptions, its own and Python's.
            try:
                # Buffered and not read ahead: else a whole row group, which may be the whole file, is held.
                table = parquet.ParquetFile(file, buffer_size=CHUNK, pre_buffer=False)
                if problem := self._problem_of(table.schema_arrow, field):
                    raise Problems(problem, Exit.DATA)
                for batch in table.iter_batches(batch_size=1024, columns=[field]):
                    for value in batch.column(0):
                        if text := value.as_py():
                            yield iter([text if isinstance(text, bytes) else utf8(text)])
            except (ValueError, TypeError, KeyError, ArithmeticError, NotImplementedError, OSError) as error:
                raise Problems(
                    Problem(f"{self.name} is no readable Parquet file", found=first_line(error)), Exit.DATA
                ) from None

    def _problem_of(self, schema: Any, field: str) -> Problem | None:
        if field not in schema.names:
            return missing_field(self.name, "column", field, schema.names)
        return holds_text(self.name, field, schema)

    @contextmanager
    def _seekable(self) -> Iterator[IO[bytes]]:
        """Parquet is read from its end, so a gzipped file has to be unpacked: to disk, not to memory."""
        with self.unpacked() as file:
            if not self.gzipped:
                yield file
                return
            with tempfile.TemporaryFile() as whole:
                shutil.copyfileobj(file, whole, CHUNK)
                whole.seek(0)
                yield whole


@contextmanager
def reading(source: TextFile) -> Iterator[None]:
    """Turn what can go wrong while a file is read into Problems (exit 3)."""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Problems(
            Problem(f"{source.name} is no whole gzip file", found=first_line(error)), Exit.DATA
        ) from None
    except OSError as error:
        if error.errno in DISK_FULL:  # while a gzipped file was unpacked: no fault of the file
            raise
        raise Problems(unreadable(source.name, error), Exit.DATA) from None


def unreadable(name: str, error: OSError) -> Problem:
    """The problem of a file that the system will not let us read."""
    fix = (
        "check its permissions, and those of the folders above it"
        if isinstance(error, PermissionError)
        else ""
    )
    return Problem(f"{name} cannot be read", found=error.strerror or str(error), fix=fix)


def missing_field(where: str, word: str, field: str, there: Sequence[str]) -> Problem:
    """The problem of a record without the asked field: says which there are, and the nearest."""
    names = ", ".join(map(repr, there[:20])) + (", ..." if len(there) > 20 else "")
    meant = did_you_mean(field, there)
    return Problem(
        f"{where} has no {word} {field!r}",
        found=names or "none at all",
        fix=f"--field NAME{'; ' + meant if meant else ''}",
    )


def holds_text(where: str, field: str, schema: Any) -> Problem | None:
    """The problem of an Arrow column that holds something else than text, or None."""
    kind = str(schema.field(field).type)
    if any(word in kind for word in ("string", "binary")) and "list" not in kind and "struct" not in kind:
        return None
    return Problem(f"{where}: column {field!r} holds no text", found=kind, wanted="string or binary")


def pyarrow_parquet(name: str) -> Any:
    """pyarrow's Parquet module. Raises Problems (exit 3) with what to type where it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise Problems(
            Problem(
                f"{name} needs pyarrow to be read",
                found="not installed",
                fix='pip install "ambidex[parquet]"',
            ),
            Exit.DATA,
        ) from None
    return pyarrow.parquet


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk
