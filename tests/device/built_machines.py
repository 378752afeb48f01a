"""Machines put together in memory, and a library that is whole, for the tests of this folder."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from ambidex.device.environment import Environment
from ambidex.device.facts import Facts
from ambidex.device.gpus_seen import Seen
from ambidex.device.machine import Arch, Build, Driver, Gpu, Machine
from ambidex.device.probe import DeviceProbe, Probe

A_LIST = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"
RTX_5060 = Gpu("NVIDIA GeForce RTX 5060 Laptop GPU", (12, 0), 0, "GPU-aaaa1111-0000-0000-0000-000000000001")
RTX_3090 = Gpu("NVIDIA GeForce RTX 3090", (8, 6), 1, "GPU-bbbb2222-0000-0000-0000-000000000002")


def archs(text: str) -> tuple[Arch, ...]:
    return tuple(Arch.parse(entry) for entry in text.split())


def a_build(
    version: str = "2.5.1+cu121", cuda: str | None = "12.1", listed: str = A_LIST, **more: object
) -> Build:
    return Build(
        version=version,
        cuda=cuda,
        archs=archs(listed) if cuda else (),
        source="scanned",
        path="/site-packages/torch",
        python="3.11",
        **more,  # type: ignore[arg-type]
    )


def some_facts(
    build: Build | None = None,
    gpus: Sequence[Gpu] = (),
    driver: Driver | None = None,
    *,
    nvidia: bool | None = None,
    amd: bool = False,
    **machine: object,
) -> Facts:
    build = a_build() if build is None else build
    driver = driver or (Driver("576.02", (12, 9)) if gpus else Driver())
    return Facts(
        machine=Machine(build=build, gpus=tuple(gpus), driver=driver, **machine),  # type: ignore[arg-type]
        environment=Environment("python", "3.11", Path("/venv"), (Path("/venv/lib"),)),
        seen=Seen(tuple(gpus), driver, bool(gpus) if nvidia is None else nvidia, amd),
    )


def cpu_build() -> Build:
    return a_build("2.13.0+cpu", None)


def probed(*devices: DeviceProbe, **more: object) -> Probe:
    return Probe(ran=True, devices=devices, **more)  # type: ignore[arg-type]


def elf(text: bytes = b"", *, padding: int = 4096) -> bytes:
    """A 64-bit ELF file that is whole: a header, ``text`` between NULs, and an empty section table at its
    end.
    """
    body = b"\0" * padding + b"\0" + text + b"\0"
    sections = 64 + len(body)
    head = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HHI", 3, 62, 1)
    head += struct.pack("<QQQ", 0, 0, sections) + struct.pack("<IHHHHHH", 0, 64, 56, 0, 64, 1, 0)
    return head + body + b"\0" * 64
