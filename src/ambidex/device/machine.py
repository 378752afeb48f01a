"""The words that facts and rules share: an architecture entry, a build, a GPU, a driver, a machine.

Plain frozen data, no I/O and no judgement: `facts.py` fills these in, `rules.py` reads them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


@dataclass(frozen=True, order=True)
class Arch:
    """One entry of a build's list: ``sm_90a`` is machine code for 9.0 exactly, ``compute_90`` is PTX."""

    kind: Literal["sm", "compute"]
    major: int
    minor: int
    suffix: Literal["", "a", "f"] = ""

    @classmethod
    def parse(cls, text: str) -> Arch:
        """``"sm_120"`` -> ``Arch("sm", 12, 0)``. Raises ValueError for anything else."""
        found = _ARCH.fullmatch(text)
        if not found:
            raise ValueError(f"not an architecture entry: {text!r}")
        kind, major, minor, suffix = found.groups()
        return cls(kind, int(major), int(minor), suffix)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}_{self.major}{self.minor}{self.suffix}"


@dataclass(frozen=True)
class Build:
    """One installed (or supposed) PyTorch.

    ``archs`` is None where the list could not be read or is in no table, and empty for a CPU build.
    ``missing`` and ``broken`` say, in words, why there is nothing to judge.
    """

    version: str | None = None  # "2.5.1+cu121"
    cuda: str | None = None  # "12.1"; None for a CPU build
    hip: str | None = None
    archs: tuple[Arch, ...] | None = None
    source: Literal["scanned", "table", "unknown"] = "unknown"
    path: str | None = None
    python: str | None = None  # "3.11" of the environment it lies in
    missing: str = ""
    broken: str = ""
    shadow: str = ""  # a file of another's that Python would import in torch's place


@dataclass(frozen=True)
class Gpu:
    """One GPU. ``visible`` is False where an environment variable hides it from CUDA."""

    name: str
    cc: tuple[int, int] | None  # compute capability
    index: int = 0  # NVML's order, which is PCI's, not CUDA's
    uuid: str = ""
    memory_bytes: int | None = None
    visible: bool = True


@dataclass(frozen=True)
class Driver:
    """The NVIDIA driver: its own version, and the newest CUDA it speaks."""

    version: str | None = None  # "576.02"
    cuda: tuple[int, int] | None = None  # (12, 9)


@dataclass(frozen=True)
class Container:
    """``kind`` is docker, podman, kubernetes, wsl or empty; ``gpu_passed`` None where no container is."""

    kind: str = ""
    gpu_passed: bool | None = None
    detail: str = ""


@dataclass(frozen=True)
class Cpu:
    name: str = ""
    cores: int = 1  # physical
    affinity: int = 1  # logical processors that this process may use
    quota: float | None = None  # CPUs, from the cgroup; None where there is no limit
    isa: tuple[str, ...] = ()  # "avx2", "avx512_bf16", "amx_bf16", ...


@dataclass(frozen=True)
class Machine:
    """Everything that the rules look at."""

    os: str = "linux"  # linux, windows, macos
    machine: str = "x86_64"  # x86_64, aarch64
    python: str = "3.11"
    build: Build = field(default_factory=Build)
    gpus: tuple[Gpu, ...] = ()
    driver: Driver = field(default_factory=Driver)
    container: Container = field(default_factory=Container)
    cpu: Cpu = field(default_factory=Cpu)
    env: dict[str, str] = field(default_factory=dict)  # only the variables that hide or change devices
    # pip, uv, poetry, conda; target: a folder without a Python; system: pip may not install there; bare: a venv without pip
    installer: str = "pip"
    executable: str = "python"
    companions: tuple[str, ...] = ()  # torchvision, torchaudio where installed


@dataclass(frozen=True)
class Extension:
    """A package other than torch whose libraries carry GPU code, with every entry that they have together."""

    name: str  # the distribution: "flash_attn"
    archs: tuple[Arch, ...]
    path: str = ""


@dataclass(frozen=True)
class Tried:
    """What happened when real kernels were started on one GPU.

    ``cause`` is the id of the cause that a failure betrays (``ARCH_NONE`` for "no kernel image"), else
    ``PROBE_FAILED``.
    """

    gpu: int  # Gpu.index
    ok: bool
    cause: str = ""
    text: str = ""  # in words: what failed, at which operation, with which message
