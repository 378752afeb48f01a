"""A file system that passes everything through to a folder, and fails when it is told to. Needs libfuse 2 and fusepy.

python faultfs.py MOUNT FOLDER CONTROL. CONTROL holds JSON: {"error": "EIO", "calls": ["write", ...], "at": 3,
"for_good": true}: the third such call since CONTROL was written fails, and with ``for_good`` all after it.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from typing import Any

from fuse import FUSE, FuseOSError, Operations  # type: ignore[import-not-found]

CHANGING = ("create", "write", "truncate", "fsync", "mkdir", "rename", "unlink", "rmdir")


class Faulty(Operations):  # type: ignore[misc]
    def __init__(self, folder: str, control: str) -> None:
        self.folder, self.control = folder, control
        self.order: dict[str, Any] = {}
        self.written_at, self.count = 0, 0

    def __call__(self, call: str, *arguments: Any) -> Any:
        self._perhaps_fail(call)
        return super().__call__(call, *arguments)

    def _perhaps_fail(self, call: str) -> None:
        try:
            written_at = os.stat(self.control).st_mtime_ns
        except OSError:
            return
        if written_at != self.written_at:
            with open(self.control) as file:
                self.order = json.loads(file.read() or "{}")
            self.written_at, self.count = written_at, 0
        if not self.order or call not in self.order["calls"]:
            return
        self.count += 1
        if self.count == self.order["at"] or (self.count > self.order["at"] and self.order["for_good"]):
            with open(self.control + ".hit", "a") as hit:
                hit.write(f"{call} {self.count}\n")
            raise FuseOSError(getattr(errno, self.order["error"]))

    def real(self, path: str) -> str:
        return self.folder + path

    def access(self, path: str, mode: int) -> None:
        if not os.access(self.real(path), mode):
            raise FuseOSError(errno.EACCES)

    def getattr(self, path: str, fh: Any = None) -> dict[str, Any]:
        found = os.lstat(self.real(path))
        names = (
            "st_atime",
            "st_ctime",
            "st_gid",
            "st_mode",
            "st_mtime",
            "st_nlink",
            "st_size",
            "st_uid",
            "st_blocks",
        )
        return {name: getattr(found, name) for name in names}

    def readdir(self, path: str, fh: Any) -> list[str]:
        return [".", "..", *os.listdir(self.real(path))]

    def statfs(self, path: str) -> dict[str, int]:
        found = os.statvfs(self.real(path))
        names = ("f_bavail", "f_bfree", "f_blocks", "f_bsize", "f_favail", "f_ffree", "f_files", "f_flag", "f_frsize",
                 "f_namemax")  # fmt: skip
        return {name: getattr(found, name) for name in names}

    def readlink(self, path: str) -> str:
        return os.readlink(self.real(path))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.real(path), mode)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self.real(path), mode)

    def rmdir(self, path: str) -> None:
        os.rmdir(self.real(path))

    def unlink(self, path: str) -> None:
        os.unlink(self.real(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self.real(old), self.real(new))

    def utimens(self, path: str, times: Any = None) -> None:
        os.utime(self.real(path), times)

    def open(self, path: str, flags: int) -> int:
        return os.open(self.real(path), flags & ~os.O_APPEND)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self.real(path), os.O_RDWR | os.O_CREAT, mode)

    def read(self, path: str, length: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, length, offset)

    def write(self, path: str, content: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, content, offset)

    def truncate(self, path: str, length: int, fh: Any = None) -> None:
        os.truncate(self.real(path), length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        os.fsync(fh)

    def fsyncdir(self, path: str, datasync: int, fh: int) -> None:
        return None

    def flush(self, path: str, fh: int) -> None:
        return None

    def release(self, path: str, fh: int) -> None:
        os.close(fh)


if __name__ == "__main__":
    FUSE(Faulty(sys.argv[2], sys.argv[3]), sys.argv[1], foreground=True, nothreads=True, big_writes=True)
