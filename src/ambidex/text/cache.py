"""The token cache: folders that are complete or not there, built once however many processes ask at once.

A folder is built under a name that begins with a dot, each file synced, then renamed. A kernel lock, which
dies with its process, keeps a second builder waiting; what a killed builder leaves behind is swept by the
next.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from ambidex.errors import Exit, Problem, Problems
from ambidex.files import sync_files, sync_folder

_UNFINISHED = ".building-"


def default_cache(environment: Mapping[str, str], platform: str = sys.platform) -> Path:
    """``AMBIDEX_CACHE``, or the folder `ambidex` in the user's cache folder of the operating system.

    Raises Problems (exit 4) where that is in a home and there is none: a container under a number that no user has.
    """
    try:
        return _default_cache(environment, platform)
    except RuntimeError as error:
        raise Problems(
            Problem("The token cache has no place.", found=str(error).rstrip("."), wanted="HOME, or a folder for the cache",
                    fix="AMBIDEX_CACHE=FOLDER in the environment"), Exit.CANNOT_WRITE,
        ) from None  # fmt: skip


def _default_cache(environment: Mapping[str, str], platform: str) -> Path:
    if own := environment.get("AMBIDEX_CACHE"):
        return Path(own).expanduser()
    if platform == "win32" and (local := environment.get("LOCALAPPDATA")):
        return Path(local) / "ambidex" / "cache"
    if platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ambidex"
    user_cache = environment.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(user_cache) if Path(user_cache).is_absolute() else Path.home() / ".cache") / "ambidex"


def open_or_build(
    cache: Path, key: str, damage: Callable[[Path], str], build: Callable[[Path], None]
) -> Path:
    """The folder ``cache/key``, built by ``build(folder)`` where it is missing or damaged.

    ``damage(folder)`` says what is wrong with a folder, or "". A folder that is there and whole is returned
    without writing anything, so a shared cache may be read-only. Raises Problems (exit 4) where the cache
    cannot be written.
    """
    folder = cache / key
    if folder.is_dir() and not damage(folder):
        return folder
    with writing(cache):
        (cache / "locks").mkdir(parents=True, exist_ok=True)
        with _locked(_lock(cache, key)):
            if folder.is_dir():
                if not (reason := damage(folder)):
                    return folder  # another process has built it while this one waited
                print(f"cache: {folder} is damaged ({reason}): building it again", file=sys.stderr)
            _sweep(cache, key)
            unfinished = cache / (_UNFINISHED + key)
            unfinished.mkdir()
            try:
                build(unfinished)
                sync_files(unfinished)
                sync_folder(unfinished)
                shutil.rmtree(folder, ignore_errors=True)
                unfinished.rename(folder)
                sync_folder(cache)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@contextmanager
def writing(cache: Path) -> Iterator[None]:
    """Turn an error of the operating system into Problems (exit 4): the disk is full, the folder not ours."""
    try:
        yield
    except OSError as error:
        raise Problems(cannot_write(cache, error), Exit.CANNOT_WRITE) from None


def cannot_write(cache: Path, error: OSError) -> Problem:
    """The problem of a cache that cannot be written, with the space that is left where that may be why."""
    found = error.strerror or str(error)
    with suppress(OSError):
        place = next(one for one in (cache, *cache.parents) if one.exists())
        found += f" ({shutil.disk_usage(place).free / 1e6:,.0f} MB free there)"
    return Problem(
        f"the token cache {cache} cannot be written",
        found=found,
        wanted="a folder that this user may write, with room for the text and its tokens",
        fix="AMBIDEX_CACHE=FOLDER in the environment",
    )


def _lock(cache: Path, key: str) -> FileLock:
    return FileLock(cache / "locks" / f"{key}.lock")


@contextmanager
def _locked(lock: FileLock) -> Iterator[None]:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("cache: another process is preparing this text: waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _sweep(cache: Path, key: str) -> None:
    """Remove what killed builders left: under our key, whose lock we hold, and where nobody holds one."""
    for left in cache.glob(_UNFINISHED + "*"):
        other = left.name.removeprefix(_UNFINISHED)
        if other == key:
            shutil.rmtree(left)
            continue
        lock = _lock(cache, other)
        with suppress(Timeout, OSError):
            lock.acquire(timeout=0)
            shutil.rmtree(left, ignore_errors=True)
            lock.release()
