"""``--data`` -> the places where text lies, in the corpus's order, with what was passed over counted by its
reason.

Everything that is wrong with everything that was given is raised at once, as Problems (exit 3).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ambidex.errors import Exit, NotThere, Problem, Problems
from ambidex.escaping import one_line, typed
from ambidex.files import open_plain
from ambidex.text.binary import binary_sign
from ambidex.text.builtin import builtin_sources
from ambidex.text.cache import writing
from ambidex.text.hub import hub_source
from ambidex.text.readers import CHUNK, JsonLines, Parquet, Source, Stream, TextFile, reading, unreadable

_SEEN = "seen before"
SIZELESS = "0 bytes long by its own word, and not empty, as the system's own files are"
_READERS: dict[str, type[TextFile]] = {".jsonl": JsonLines, ".ndjson": JsonLines, ".parquet": Parquet}


@dataclass
class Found:
    """What ``--data`` led to."""

    sources: list[Source] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)  # reason -> how many files or folders
    seen: set[tuple[int, int]] = field(
        default_factory=set
    )  # device and inode: links may lead to a file twice


def find_sources(data: Sequence[str], scratch: Path) -> Found:
    """Every source that ``data`` names, ordered by the hash of its name.

    The hash spreads kinds and folders evenly, so the tail that is held out resembles the rest; and it depends
    on nothing but names relative to what was given, so the order is the same on every machine. ``scratch`` is
    a folder for what can only be read once, such as standard input.
    """
    found = Found()
    problems: list[Problem] = []
    for word in dict.fromkeys(data):
        try:
            _find(word, found, scratch)
        except Problems as more:
            problems += more.problems
    if not data:
        problems.append(
            Problem("no data was given", fix="--data PATH, --data builtin or --data - for standard input")
        )
    if problems:
        raise Problems(problems, Exit.DATA)
    found.sources.sort(key=lambda source: hashlib.sha256(source.name.encode()).digest())
    return found


def _find(word: str, found: Found, scratch: Path) -> None:
    if (
        not word.strip()
    ):  # which the system would take for the folder that we are in: an empty variable in a shell
        raise Problems(
            Problem("a name in --data is empty", found=repr(word), wanted="a file or a folder"), Exit.DATA
        )
    if word == "-":
        if sys.stdin is None:  # closed by whoever started the process
            raise Problems(
                Problem("standard input is closed", fix="--data PATH, or pipe a text in"), Exit.DATA
            )
        found.sources.append(_spool("standard input", sys.stdin.buffer, scratch))
    elif word == "builtin":
        found.sources += builtin_sources()
    elif word.startswith("hf:"):
        found.sources.append(hub_source(word.removeprefix("hf:")))
    else:
        path = Path(word)
        try:
            status = path.stat()
        except (OSError, ValueError) as error:
            raise Problems(_not_there(word, error), Exit.DATA) from None
        if stat.S_ISDIR(status.st_mode):
            _find_in_folder(path, found)
        elif stat.S_ISFIFO(status.st_mode):
            with path.open("rb") as pipe:
                found.sources.append(_spool(spelled(word), pipe, scratch))
        else:
            _find_file(path, status, found)


def _find_file(path: Path, status: os.stat_result, found: Found) -> None:
    """A file given by name: whatever keeps it from being text is a problem."""
    name = spelled(path.name)
    if not stat.S_ISREG(status.st_mode):
        raise Problems(Problem(f"{spelled(str(path))} is neither a file nor a folder"), Exit.DATA)
    if _is_new(status, found):
        source = _reader(path, path.name, status.st_size)
        if reason := _why_not(source):
            if reason == SIZELESS:
                copy = f"copy it first: cat {typed([str(path)])} > copy.txt"
                raise Problems(Problem(f"{name} is no file on a disk", found=reason, fix=copy), Exit.DATA)
            empty = "give a file with text in it" if reason.startswith("empty") else ""
            raise Problems(
                Problem(
                    f"{name} is no text",
                    found=reason,
                    fix=empty or "give text, .jsonl, .parquet or .gz of those",
                ),
                Exit.DATA,
            )
        found.sources.append(source)


def _find_in_folder(folder: Path, found: Found) -> None:
    """Everything under a folder: what is hidden or no text is counted, what cannot be read is a problem."""
    problems: list[Problem] = []
    before = len(found.sources)
    skipped_before = found.skipped.copy()
    for path, status in _walk(folder, found, problems):
        source = _reader(path, path.relative_to(folder).as_posix(), status.st_size)
        try:
            reason = _why_not(source)
        except Problems as more:
            problems += more.problems
            continue
        if reason:
            found.skipped[_kind_of(reason)] += 1
        else:
            found.sources.append(source)
    passed_over = found.skipped - skipped_before
    if not problems and len(found.sources) == before and not passed_over[_SEEN]:
        reasons = describe_skipped(passed_over) or "nothing in it"
        problems.append(Problem(f"no text in the folder {spelled(str(folder))}", found=reasons))
    if problems:
        raise Problems(problems, Exit.DATA)


def _kind_of(reason: str) -> str:
    return "empty" if reason.startswith("empty") else "not plain files" if reason == SIZELESS else "binary"


def _walk(folder: Path, found: Found, problems: list[Problem]) -> Iterator[tuple[Path, os.stat_result]]:
    """Plain files under a folder, each once; links are followed, but not into a folder already seen."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                if _is_new(status, found):
                    inside = sorted(path.iterdir(), reverse=True)
                    shown = [one for one in inside if not one.name.startswith(".")]
                    found.skipped["hidden"] += len(inside) - len(shown)
                    waiting += shown
            elif not stat.S_ISREG(status.st_mode):
                found.skipped["not plain files"] += 1
            elif _is_new(status, found):
                yield path, status
        except PermissionError as error:
            problems.append(unreadable(spelled(str(path)), error))
        except OSError:  # a link to nowhere, a circle of links, a file that has just gone
            found.skipped["broken links"] += 1


def _is_new(status: os.stat_result, found: Found) -> bool:
    identity = (status.st_dev, status.st_ino)
    if identity in found.seen:
        found.skipped[_SEEN] += 1
        return False
    found.seen.add(identity)
    return True


def _reader(path: Path, name: str, size: int) -> TextFile:
    gzipped = path.suffix.lower() == ".gz"
    kind = Path(path.stem).suffix if gzipped else path.suffix
    return _READERS.get(kind.lower(), TextFile)(spelled(name), path, size, gzipped)


def _holds_something(path: Path) -> bool:
    """Whether a file that is 0 bytes long by its own word can be read all the same, as those of /proc; without waiting."""
    try:
        with open_plain(path) as file:
            return bool(file.read(1))
    except (OSError, ValueError):
        return False


def _why_not(source: TextFile) -> str:
    """Why a file is not text: "empty", or how it was recognised; nothing where it may be read."""
    with reading(source):
        if source.size == 0:
            return SIZELESS if _holds_something(source.path) else "empty"
        if type(source) is not TextFile:  # records say what they are by their name, and are checked when read
            with source.path.open("rb"):
                return ""
        with source.unpacked() as file:
            return binary_sign(file.read(1 << 16))
    return ""


def _spool(name: str, stream: IO[bytes], scratch: Path) -> Stream:
    """Copy a stream to a file without a name, which the system takes away with the process."""
    with writing(scratch):
        spooled = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115 - it lives as long as the source
        shutil.copyfileobj(stream, spooled, CHUNK)
        spooled.flush()
    if not (size := spooled.tell()):
        raise Problems(Problem(f"{name} is no text", found="empty"), Exit.DATA)
    spooled.seek(0)
    if sign := binary_sign(spooled.read(1 << 16)):
        raise Problems(Problem(f"{name} is no text", found=sign), Exit.DATA)
    return Stream(name, size, spooled)


def _not_there(word: str, error: OSError | ValueError) -> Problem:
    name = spelled(word)
    if isinstance(error, FileNotFoundError):
        return NotThere(f"{name} is not there", fix=_instead(word))
    if isinstance(error, OSError):
        return unreadable(name, error)
    return Problem(f"{name} is no file name", found=str(error))


def _instead(word: str) -> str:
    """What somebody may have meant by the name of a file that there is not."""
    if "://" in word:
        return "save it to a file first: nothing is fetched from an address"
    if "," in word and any(Path(part.strip()).exists() for part in word.split(",")):
        return f"blanks between several: --data {' '.join(map(spelled, word.split(',')))}"
    return "check --data; `builtin` is the corpus that needs no file"


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """``"3 hidden, 2 binary"``."""
    return ", ".join(f"{number} {reason}" for reason, number in sorted(skipped.items()) if number)


def spelled(name: str) -> str:
    """A file name for people, whole and on one line."""
    return one_line(name, longest=len(name))
