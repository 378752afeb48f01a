"""The table of builds, `builds.json`, as questions: which kernels, which Python, which driver, which index.

Read once, when first asked. Nothing here judges; what the table does not know is None, never a guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ambidex.device.machine import Arch, Build, Driver
from ambidex.device.version import TorchVersion, at_least, cuda_of_tag, numbers, pair

INDEX = "https://download.pytorch.org/whl/"


@dataclass(frozen=True)
class Release:
    """One torch on one index for one platform, as the table has it."""

    torch: str  # "2.11.0"
    tag: str  # "cu128"
    cuda: str  # "12.8"
    state: str  # the index: stable, ended or unsupported
    archs: tuple[Arch, ...]
    pythons: tuple[str, str]  # first and last
    evidence: str

    @property
    def version(self) -> str:
        return f"{self.torch}+{self.tag}"

    @property
    def index(self) -> str:
        return INDEX + self.tag

    def build(self, python: str | None = None) -> Build:
        return Build(self.version, self.cuda, archs=self.archs, source="table", python=python)

    def allows(self, python: str) -> bool:
        """Whether there is a wheel for this Python. Experimental ones do not count."""
        first, last = (numbers(end) for end in self.pythons)
        return first <= numbers(python)[:2] <= last


@cache
def table() -> dict[str, Any]:
    text = Path(__file__).with_name("builds.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def date() -> str:
    """The day of which the table speaks."""
    return str(table()["date"])


def platform(os: str, machine: str) -> str:
    """The table's word for an OS and a machine, or empty where nobody builds CUDA wheels for it."""
    if os == "linux" and machine in ("x86_64", "aarch64"):
        return f"linux-{machine}"
    return "windows" if os == "windows" and machine == "x86_64" else ""


@cache
def releases(os: str, machine: str) -> tuple[Release, ...]:
    """Every release with CUDA that the table has for this platform, oldest first."""
    return tuple(_releases(platform(os, machine)))


def _releases(where: str) -> Iterator[Release]:
    known = table()
    for torch in known["versions"]["list"]:
        series = ".".join(torch.split(".")[:2])
        python = known["python"][series]
        for tag, per_platform in known["kernels"].get(series, {}).items():
            index = known["indexes"][tag]
            row = per_platform.get(where)
            if row and _on(index, torch):
                archs = tuple(Arch.parse(entry) for entry in row["archs"].split())
                pythons = (python["first"], python["last"])
                yield Release(torch, tag, index["cuda"], index["state"], archs, pythons, row["evidence"])


def _on(index: dict[str, Any], torch: str) -> bool:
    inside = numbers(index["first"]) <= numbers(torch) <= numbers(index["last"])
    return inside and torch not in index["absent"]


def find(version: str, os: str, machine: str) -> Release | None:
    """The row of ``"2.11.0+cu128"``; None where the table has none. Without a tag it is what PyPI serves."""
    asked = TorchVersion.parse(version)
    if asked is None or not asked.released:
        return None
    tag = asked.local or pypi_tag(version, os, machine)
    rows = (row for row in releases(os, machine) if row.torch == asked.base and row.tag == tag)
    return next(rows, None)


def archs(version: str, os: str, machine: str) -> tuple[Arch, ...] | None:
    """What a release or a nightly has code for; None where the table does not know."""
    asked = TorchVersion.parse(version)
    if asked is None or asked.pre:
        return None
    if not asked.dev:
        row = find(version, os, machine)
        return row.archs if row else None
    for span in table()["nightlies"]:
        here = span["platform"] == platform(os, machine) and span["tag"] == asked.local
        if here and span["first"] <= asked.dev <= span["last"]:
            return tuple(Arch.parse(entry) for entry in span["archs"].split())
    return None


def nightly_ended(version: str) -> tuple[str, str] | None:
    """A nightly's channel and the day of its last build, ``("nightly/cu124", "2025-03-10")``, if over."""
    asked = TorchVersion.parse(version)
    last = table()["nightlies_ended"].get(asked.local) if asked and asked.dev else None
    return (f"nightly/{asked.local}", last) if asked and last else None


def pypi_tag(version: str, os: str, machine: str) -> str | None:
    """The variant that plain `pip install torch==VERSION` brings, "cu130" or "cpu"; None where unknown."""
    asked = TorchVersion.parse(version)
    if asked is None or not asked.released or asked.base not in table()["versions"]["list"]:
        return None
    where = {"macos": "macos", "windows": "windows"}.get(os) or platform(os, machine)
    tag = table()["pypi"].get(where, {}).get(asked.series)
    return str(tag) if tag else None


def tags_of(version: str, os: str, machine: str) -> tuple[str, ...]:
    """The indexes on which the table has this torch for this platform."""
    asked = TorchVersion.parse(version)
    return tuple(row.tag for row in releases(os, machine) if asked and row.torch == asked.base)


def newer_than_table(version: str) -> bool:
    asked = TorchVersion.parse(version)
    newest = table()["versions"]["list"][-1]
    return asked is not None and numbers(asked.base) > numbers(newest)


def pythons_of(version: str) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The first and the last Python that a release has wheels for, experimental ones too; None where unknown."""
    asked = TorchVersion.parse(version)
    span = table()["python"].get(asked.series) if asked and asked.released else None
    return (numbers(span["first"]), numbers(span.get("experimental", span["last"]))) if span else None


def newest_on_pypi(python: str, os: str, machine: str) -> tuple[str, str] | None:
    """The newest torch of PyPI's for this Python on this platform, and "", or the newest of all with the last Python
    that has it. None where PyPI has no torch for the platform.
    """
    known, where = table(), f"{os}-{machine}"
    wheels = known["pypi_wheels"]
    if where not in wheels["last"]:
        return None
    last = wheels["last"][where] or known["versions"]["list"][-1]
    own = wheels["pythons_of_last"].get(where)
    fitting, ends = "", ""
    for torch in known["versions"]["list"]:
        if numbers(torch) > numbers(last):
            continue
        span = known["python"][".".join(torch.split(".")[:2])]
        first, ends = own if own and torch == last else (span["first"], span["last"])
        if numbers(first) <= numbers(python)[:2] <= numbers(ends):
            fitting = torch
    return (fitting, "") if fitting else (last, ends)


def cuda_floor(cuda: str | None, os: str) -> str | None:
    """The oldest driver that runs programs made with this CUDA: ``("12.1", "linux")`` -> ``"525.60.13"``."""
    major = str(numbers(cuda)[0]) if cuda else ""
    floors: dict[str, str] = table()["drivers"]["floor"].get(major, {})
    return floors.get("windows" if os == "windows" else "linux")


def gpu_floor(cc: tuple[int, int] | None) -> tuple[str, str] | None:
    """The oldest driver that knows this GPU, and its CUDA: ``("570", "12.8")``. None where none is known."""
    row = table()["drivers"]["gpu_floor"].get(str(cc[0])) if cc and cc != (10, 1) else None
    return (row["driver"], row["cuda"]) if row else None


def last_driver(cc: tuple[int, int] | None) -> str | None:
    """The last branch of NVIDIA's driver that drives this GPU, None where none has ended: ``(6, 1)`` -> ``"580"``."""
    if cc is None:
        return None
    ends: dict[str, str] = table()["drivers"]["gpu_last"]
    return ends.get(f"{cc[0]}.{cc[1]}")


def is_of_a_later_branch(driver: Driver, last: str) -> bool:
    """Whether a driver is of a branch behind ``last``: 581 and 582 are Windows' 580, 590 is the next."""
    branches = sorted({numbers(version)[:1] for version in table()["drivers"]["cuda"]["linux"]})
    following = [branch for branch in branches if branch > numbers(last)[:1]]
    return bool(following) and numbers(driver.version or "")[:1] >= following[0]


def driver_cuda(driver: Driver, os: str) -> tuple[int, int] | None:
    """The newest CUDA that a driver speaks: its own word, else by NVIDIA's table. None where unknown."""
    if driver.cuda or not driver.version:
        return driver.cuda
    speaks = None
    for floor, cuda in table()["drivers"]["cuda"]["windows" if os == "windows" else "linux"].items():
        if at_least(driver.version, floor):
            speaks = pair(cuda)
    return speaks


def newer_driver_than_table(driver: Driver, os: str) -> bool:
    """Whether a driver is of a later branch than any that the table has, so that what it speaks is not known from it."""
    newest = list(table()["drivers"]["cuda"]["windows" if os == "windows" else "linux"])[-1]
    return numbers(driver.version or "")[:1] > numbers(newest)[:1]


def first_toolkit(cc: tuple[int, int]) -> str | None:
    """The first CUDA that could make code that runs on this GPU, where the table says it."""
    firsts = table()["toolkits"]["first"]
    same_major = [numbers(cuda) for known, cuda in firsts.items() if _runs_there(numbers(known), cc)]
    return ".".join(map(str, min(same_major))) if same_major else None


def _runs_there(known: tuple[int, ...], cc: tuple[int, int]) -> bool:
    return known == cc or (known[0] == cc[0] and known[1] < cc[1] and known != (10, 1))


def dropped_by(cc: tuple[int, int]) -> str | None:
    """The CUDA that no longer makes code for this GPU, where the table says it."""
    cuda = table()["toolkits"]["dropped"].get(f"{cc[0]}.{cc[1]}")
    return str(cuda) if cuda else None


def cuda_of(build: Build) -> str | None:
    """A build's CUDA: its own word, else its tag's."""
    if build.cuda or not build.version:
        return build.cuda
    asked = TorchVersion.parse(build.version)
    return cuda_of_tag(asked.local) if asked else None
