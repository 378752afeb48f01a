"""Which GPUs a shared library has code for, by the headers of the fat binaries inside it.

nvcc puts GPU code into a section of its own as containers: a header (magic 0xBA55ED50, u16 version, u16
header size, u64 size), then entries (u16 kind: 1 PTX, 2 machine code; u32 header size at +4; u64 size at +8;
u32 architecture at +28; u64 flags at +40). Only these headers are read, never the code, so a library of a
gigabyte takes milliseconds.

The flag 0x100000 marks architecture-specific code (``sm_90a``): measured on torch 2.6.0+cu124, where the two
entries that bear it unpack to cubins whose own ELF flags say the same. How ``f`` is marked is not known here.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from ambidex.device.machine import Arch

_MAGIC = struct.pack("<I", 0xBA55ED50)
_PTX, _MACHINE_CODE = 1, 2
_SPECIFIC = 0x100000
_SECTIONS = (b".nv_fatbin", b"__nv_relfatbin", b".nv_fatb", b".nvFatBi")


def archs_in(library: Path) -> tuple[Arch, ...]:
    """Every architecture that the library holds code or PTX for, sorted; empty where it holds none.

    Raises OSError where the file cannot be read. A damaged library gives what could be read of it.
    """
    if library.stat().st_size < 64:
        return ()
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        found: set[Arch] = set()
        for start, end in _sections(view):
            found.update(_entries(view, start, end))
    return tuple(sorted(found))


def _sections(view: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where fat binaries can lie: the sections of that name; the whole file where there is no table of
    sections.
    """
    size = len(view)
    try:
        named = list(_elf_sections(view) if view[:4] == b"\x7fELF" else _pe_sections(view))
    except struct.error:
        named = []
    if not named:
        yield 0, size
    for name, start, length in named:
        if name in _SECTIONS:
            yield min(start, size), min(start + length, size)


def _elf_sections(view: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    table = struct.unpack_from("<Q", view, 40)[0]
    each, count, names_at = struct.unpack_from("<HHH", view, 58)
    if not table or not count or table + each * count > len(view):
        return
    names = struct.unpack_from("<Q", view, table + each * names_at + 24)[0]
    for number in range(count):
        name = struct.unpack_from("<I", view, table + each * number)[0]
        start, length = struct.unpack_from("<QQ", view, table + each * number + 24)
        yield view[names + name : names + name + 16].split(b"\0")[0], start, length


def _pe_sections(view: mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    if view[:2] != b"MZ":
        return
    start = struct.unpack_from("<I", view, 60)[0]
    count, optional = (
        struct.unpack_from("<H", view, start + 6)[0],
        struct.unpack_from("<H", view, start + 20)[0],
    )
    for number in range(count):
        at = start + 24 + optional + 40 * number
        length, offset = struct.unpack_from("<II", view, at + 16)
        yield view[at : at + 8].rstrip(b"\0"), offset, length


def _entries(view: mmap.mmap, start: int, end: int) -> Iterator[Arch]:
    at = view.find(_MAGIC, start, end)
    while 0 <= at <= end - 16:
        header, size = struct.unpack_from("<HQ", view, at + 6)
        stop = at + header + size
        if header != 16 or stop > end:  # the magic stood there by chance, or the file ends too soon
            at = view.find(_MAGIC, at + 4, end)
            continue
        yield from _container(view, at + header, stop)
        at = view.find(_MAGIC, stop, end)


def _container(view: mmap.mmap, at: int, stop: int) -> Iterator[Arch]:
    while at + 48 <= stop:
        kind, _, header, size = struct.unpack_from("<HHIQ", view, at)
        arch = struct.unpack_from("<I", view, at + 28)[0]
        flags = struct.unpack_from("<Q", view, at + 40)[0]
        if header < 48:
            return
        if kind in (_PTX, _MACHINE_CODE) and 20 <= arch < 1000:
            major, minor = divmod(arch, 10)
            yield Arch(
                "sm" if kind == _MACHINE_CODE else "compute", major, minor, "a" if flags & _SPECIFIC else ""
            )
        at += header + size
