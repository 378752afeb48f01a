"""The words of an answer: a verdict, a cause, a fix, and the diagnosis that holds them. Plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

from ambidex.device.machine import Build, Gpu

Kind = Literal["native", "same-major", "jit", "none", "unknown"]
RUNS: tuple[Kind, ...] = ("native", "same-major", "jit")

CauseId = Literal[
    "OK",
    "ARCH_NONE",
    "DRIVER_OLD",
    "CPU_BUILD",
    "NO_GPU",
    "HIDDEN_BY_ENV",
    "CONTAINER_NO_GPU",
    "TORCH_MISSING",
    "TORCH_BROKEN",
    "EXTENSION_ARCH",
    "UNKNOWN_BUILD",
    "PROBE_FAILED",
]


class DoctorExit(IntEnum):
    """Exit codes of `doctor`, and of `train --device cuda` where the GPU cannot be had."""

    USABLE = 0
    CPU_ONLY = 10
    NO_CODE = 20
    DRIVER_OLD = 21
    CONTAINER_NO_GPU = 22
    HIDDEN = 23
    TORCH = 24
    EXTENSION = 25
    UNDETERMINED = 30


EXIT_OF: dict[CauseId, DoctorExit] = {
    "OK": DoctorExit.USABLE,
    "CPU_BUILD": DoctorExit.CPU_ONLY,
    "NO_GPU": DoctorExit.CPU_ONLY,
    "ARCH_NONE": DoctorExit.NO_CODE,
    "DRIVER_OLD": DoctorExit.DRIVER_OLD,
    "CONTAINER_NO_GPU": DoctorExit.CONTAINER_NO_GPU,
    "HIDDEN_BY_ENV": DoctorExit.HIDDEN,
    "TORCH_MISSING": DoctorExit.TORCH,
    "TORCH_BROKEN": DoctorExit.TORCH,
    "EXTENSION_ARCH": DoctorExit.EXTENSION,
    "UNKNOWN_BUILD": DoctorExit.UNDETERMINED,
    "PROBE_FAILED": DoctorExit.UNDETERMINED,
}


@dataclass(frozen=True)
class Verdict:
    """Whether a build has code that can start on a GPU, and by which of its entries (empty where none)."""

    kind: Kind
    covered_by: str
    reason: str

    @property
    def runs(self) -> bool:
        return self.kind in RUNS


@dataclass(frozen=True)
class GpuVerdict:
    """One GPU's verdict. ``ran`` is what the probe saw there: True, False, or None where none was run."""

    gpu: Gpu
    verdict: Verdict
    ran: bool | None = None


@dataclass(frozen=True)
class Cause:
    """``text`` says what is so, ``why`` the reason behind it (it may be empty)."""

    id: CauseId
    text: str
    why: str = ""


@dataclass(frozen=True)
class Fix:
    """One way out.

    ``commands`` are typed one after another, and are empty where only the driver has to change. ``installs``
    are the requirements that they install. ``requires`` names what has to change by hand first:
    ``{"driver": "580"}`` is that version or newer, ``{"python": "3.14"}`` that Python. ``why`` is for people.
    ``build`` is the torch that is there afterwards, which may be the present one.
    """

    commands: tuple[str, ...] = ()
    installs: tuple[str, ...] = ()
    requires: dict[str, str] = field(default_factory=dict)
    why: str = ""
    build: Build | None = None

    def data(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return {
            "commands": list(self.commands),
            "installs": list(self.installs),
            "requires": self.requires,
            "why": self.why,
        }


@dataclass(frozen=True)
class Diagnosis:
    """The whole answer. ``also`` has the other causes that hold, in the order in which causes are judged."""

    verdict: Kind
    exit_code: int
    cause: Cause
    gpus: tuple[GpuVerdict, ...] = ()
    fixes: tuple[Fix, ...] = ()
    also: tuple[Cause, ...] = ()
    not_checked: tuple[str, ...] = ()
    table_date: str = ""
    cpu_now: str = ""  # what to type to train on the CPU meanwhile; empty where this torch cannot
    usable: tuple[Gpu, ...] = ()  # visible GPUs on which kernels of this build start
