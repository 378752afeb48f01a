"""Facts in, verdict and fixes out. (Signatures first; the judgement follows.)"""

from __future__ import annotations

from collections.abc import Sequence

from ambidex.device.diagnosis import Diagnosis, Fix, Verdict
from ambidex.device.machine import Build, Driver, Extension, Gpu, Machine, Tried


def verdict(
    build: Build,
    gpu: Gpu,
    driver: Driver = Driver(),  # noqa: B008
    python: str = "",
    os: str = "linux",
    machine: str = "x86_64",
) -> Verdict:
    """Whether `build` has code that can start on `gpu`."""
    raise NotImplementedError


def fixes(machine: Machine) -> tuple[Fix, ...]:
    """What to install, in the order in which to try it."""
    raise NotImplementedError


def judge(
    machine: Machine,
    *,
    extensions: Sequence[Extension] | None = None,
    probe: Sequence[Tried] | None = None,
    strict: bool = False,
) -> Diagnosis:
    """The one cause, the reason, the fixes. None for `extensions` or `probe` means that it was not done."""
    raise NotImplementedError
