"""Extension libraries: torch may be fine and a package beside it have no code for this GPU.

Every shared library of an environment is looked at, torch's own and the nvidia packages aside, by `fatbin`.
What was found is kept by path, size and time, so that only new files are read the next time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ambidex.device import fatbin
from ambidex.device.machine import Arch, Extension

# torch is judged by its own list; nvidia's packages are its parts; the rest carry no code of their own for a
# GPU.
_PASSED_OVER = re.compile(
    r"(?:torch|torchgen|functorch|nvidia|nvidia_.*|triton|__pycache__|.*\.dist-info|.*\.libs)"
)
_LIBRARY = re.compile(r".*\.(?:so(?:\.\d+)*|pyd|dll)")
_SMALLEST_BYTES = 4096


@dataclass(frozen=True)
class Scan:
    """What was found, and in words what could not be looked at."""

    extensions: tuple[Extension, ...] = ()
    libraries: int = 0
    read: int = 0  # those that the cache did not know
    notes: tuple[str, ...] = ()


def scan(places: Iterable[Path], *, keep: Path | None = None, seconds: float = 8.0) -> Scan:
    """Packages with GPU code in ``places``, each with every entry that its libraries have together.

    Together, because packages ship libraries that are meant for one GPU only beside those for all. ``keep``
    is the file that remembers; None keeps nothing. Stops after ``seconds`` and says so.
    """
    ends = time.monotonic() + seconds
    known = _load(keep)
    fresh: dict[str, list[object]] = {}
    packages: dict[str, tuple[set[Arch], str]] = {}
    notes: list[str] = []
    count = read = 0
    for place, library in _libraries(places):
        if time.monotonic() > ends:
            notes.append(
                f"the scan of extension libraries stopped after {seconds:g} s with {count} of them seen"
            )
            break
        try:
            status = library.stat()
            row = known.get(str(library))
            if row is None or row[0] != status.st_size or row[1] != status.st_mtime_ns:
                row = [status.st_size, status.st_mtime_ns, " ".join(map(str, fatbin.archs_in(library)))]
                read += 1
        except (OSError, ValueError) as error:
            notes.append(f"{library} could not be read ({getattr(error, 'strerror', None) or error})")
            continue
        count += 1
        fresh[str(library)] = row
        archs = _parsed(str(row[2]))
        package = _package(place, library) if archs else ""
        if package and not _PASSED_OVER.fullmatch(package):
            together, _ = packages.setdefault(package, (set(), str(library)))
            together.update(archs)
    if read:
        _save(keep, {**known, **fresh})
    found = (Extension(name, tuple(sorted(archs)), path) for name, (archs, path) in sorted(packages.items()))
    return Scan(tuple(found), count, read, tuple(notes))


def cache_file(environ: Mapping[str, str]) -> Path:
    """Where the system keeps what can be made again."""
    if sys.platform == "win32":
        base = Path(environ.get("LOCALAPPDATA", "~"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base / "ambidex" / "extensions.json"


def _libraries(places: Iterable[Path]) -> Iterator[tuple[Path, Path]]:
    """(folder of packages, library) for every shared library that may carry GPU code of its own."""
    seen: set[Path] = set()
    for place in places:
        of_packages = place.name in ("site-packages", "dist-packages") or (place / "torch").is_dir()
        if not of_packages or place.resolve() in seen:
            continue
        seen.add(place.resolve())
        for folder, inner, files in os.walk(place):
            if Path(folder) == place:
                inner[:] = [name for name in inner if not _PASSED_OVER.fullmatch(name)]
            else:
                inner[:] = [name for name in inner if name != "__pycache__"]
            for name in sorted(files):
                path = Path(folder) / name
                with contextlib.suppress(OSError):
                    if _LIBRARY.fullmatch(name) and path.is_file() and path.stat().st_size >= _SMALLEST_BYTES:
                        yield place, path


def _package(place: Path, library: Path) -> str:
    """The distribution whose RECORD lists the library; without one, its folder's or its own name.

    A folder's name is not enough: nvidia-cusparselt-cu12 installs a folder ``cusparselt``.
    """
    parts = library.relative_to(place).parts
    for name, files in _records(place).items():
        if "/".join(parts) in files:
            return name
    return parts[0].split(".")[0]


@cache
def _records(place: Path) -> dict[str, frozenset[str]]:
    """Distribution -> the shared libraries that it installed."""
    found = {}
    for record in sorted(place.glob("*.dist-info/RECORD")):
        with contextlib.suppress(OSError, ValueError):
            paths = (line.split(",", 1)[0] for line in record.read_text("utf-8", "replace").splitlines())
            libraries = frozenset(path for path in paths if _LIBRARY.fullmatch(path))
            found[record.parent.name.split("-")[0]] = libraries
    return found


def _parsed(text: str) -> tuple[Arch, ...]:
    found = []
    for word in text.split():
        with contextlib.suppress(ValueError):
            found.append(Arch.parse(word))
    return tuple(found)


def _load(cache: Path | None) -> dict[str, list[object]]:
    """What the cache knows; nothing where it is not there or is not what was written."""
    if cache is None:
        return {}
    try:
        rows = json.loads(cache.expanduser().read_text("utf-8"))
    except (OSError, ValueError, RuntimeError):
        return {}
    if not isinstance(rows, dict):
        return {}
    return {path: row for path, row in rows.items() if isinstance(row, list) and len(row) == 3}


def _save(cache: Path | None, rows: Mapping[str, list[object]]) -> None:
    """Write beside, then rename; a cache that cannot be written is done without."""
    if cache is None:
        return
    with contextlib.suppress(OSError, RuntimeError):
        target = cache.expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.with_name(f".{target.name}.{os.getpid()}")
        beside.write_text(
            json.dumps({path: row for path, row in rows.items() if Path(path).exists()}), "utf-8"
        )
        beside.replace(target)
