"""Files on disk: written so that a kill leaves the old or the new one, read so that nobody can make us wait or swell.

This room knows no format. What it raises is the system's own OSError, or ValueError for a file that is not plain.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import BinaryIO

CHUNK = 1 << 22  # bytes that are written, read or hashed at once


def write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        sync_file(file)


def sync_file(file: BinaryIO) -> None:
    """Down to the disk; and out of the page cache, where that can be asked for, so that reading back means the disk."""
    file.flush()
    os.fsync(file.fileno())
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # advice, which some file systems do not take
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Make a rename durable. Windows cannot open a folder, and keeps its own journal of names; some network file
    systems (SMB) cannot sync one, and say so with EINVAL or EBADF, which PostgreSQL passes over as well."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):
            raise
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Every file of a folder; the folder itself is left to `sync_folder`."""
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())


def replace_synced(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old or the new one, never half of it."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_synced(unfinished, content)
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def open_plain(path: Path, follow: bool = True) -> FileIO:
    """Open a regular file for reading. A pipe or a device, which may never end, raises ValueError; so does a link
    where ``follow`` is False."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not follow and path.is_symlink():
        raise ValueError("is a link")
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("is no plain file")
    return os.fdopen(handle, "rb", buffering=0)


def read_small(path: Path, largest: int) -> bytes:
    """The whole of a plain file, or ValueError where it is larger than ``largest`` bytes: then nothing is read."""
    with open_plain(path) as file:
        if os.fstat(file.fileno()).st_size > largest:
            raise ValueError(f"larger than {largest:,} bytes")
        content = bytearray()
        while some := file.read(min(CHUNK, largest + 1 - len(content))):
            content += some
        if len(content) > largest:  # it grew while it was read
            raise ValueError(f"larger than {largest:,} bytes")
        return bytes(content)
