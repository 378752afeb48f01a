"""Which code runs on which GPU: NVIDIA's rule, entry by entry, and a build's verdict by it. Pure.

SASS runs on its own major, at its minor or above; PTX runs on every later GPU, if the driver can compile it;
`a` code runs on exactly one capability, `f` code inside its family; the integrated GPUs of Jetson run only
their own SASS. Source: NVIDIA's Blackwell Compatibility Guide 13.0, and torch 2.15's own table for Jetson.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

from ambidex.device import builds
from ambidex.device.builds import Release
from ambidex.device.diagnosis import Kind, Verdict
from ambidex.device.machine import Arch, Build, Driver, Gpu
from ambidex.device.version import TorchVersion, at_least, cuda_of_tag, dotted, numbers, pair

Capability = tuple[int, int]

_INTEGRATED: frozenset[Capability] = frozenset({(5, 3), (6, 2), (7, 2), (8, 7)})
_SBSA_ON_JETSON = (13, 2)  # from this CUDA on, server code for Arm (sm_80) runs on Orin too


def covers(
    entry: Arch,
    cc: Capability,
    *,
    driver_cuda: Capability | None = None,
    build_cuda: Capability | None = None,
) -> Kind:
    """What `entry` is to a GPU of capability `cc`: native, same-major, jit or none.

    PTX counts only where the driver speaks the CUDA that made it; where either is unknown it is taken to.
    """
    code, device = _silicon((entry.major, entry.minor)), _silicon(cc)
    if not _reaches(entry, code, device, build_cuda):
        return "none"
    if entry.kind == "compute":
        too_new = driver_cuda is not None and build_cuda is not None and driver_cuda < build_cuda
        return "none" if too_new else "jit"
    return "native" if code == device else "same-major"


def _reaches(entry: Arch, code: Capability, device: Capability, build_cuda: Capability | None) -> bool:
    same_family = code[0] == device[0] and device[1] >= code[1]
    if entry.suffix == "a":
        return code == device
    if entry.suffix == "f":
        return same_family
    if entry.kind == "compute":
        # By the number it was given: CUDA 12.9's ptxas takes sm_101 for sm_103 and sm_120, not for sm_100.
        return device >= (entry.major, entry.minor)
    return same_family and not _kept_apart(code, device, build_cuda)


def _silicon(cc: Capability) -> Capability:
    """Thor was 10.1 before CUDA 13 and is 11.0 since: the same chip."""
    return (11, 0) if cc == (10, 1) else cc


def _kept_apart(code: Capability, device: Capability, build_cuda: Capability | None) -> bool:
    """Whether one of the two is an integrated GPU, which neither runs others' SASS nor lends its own."""
    if code == device or not {code, device} & _INTEGRATED:
        return False
    return not (device == (8, 7) and build_cuda is not None and build_cuda >= _SBSA_ON_JETSON)


_ORDER: tuple[Kind, ...] = ("native", "same-major", "jit", "none")


def verdict(
    build: Build,
    gpu: Gpu,
    driver: Driver | None = None,
    python: str = "",  # noqa: ARG001 - which wheels exist depends on it, what they run on does not
    os: str = "linux",
    machine: str = "x86_64",
) -> Verdict:
    """Whether `build` has code that can start on `gpu`, by which entry, and why, in words.

    The build's own list counts; where there is none, the table's for the version on this OS and machine.
    A driver that is too old for the build altogether is another question: see `floor`.
    """
    if gpu.cc is None:
        return Verdict("unknown", "", f"the compute capability of {gpu.name} could not be read")
    if build.hip or is_cpu(build, os, machine):
        return Verdict("none", "", f"torch {build.version} is {made_for(build)}")
    entries = known_archs(build, os, machine)
    if entries is None:
        return Verdict(
            "unknown", "", f"what torch {build.version} has code for is in no table and cannot be read"
        )
    return _best(build, entries, gpu.cc, builds.driver_cuda(driver or Driver(), os))


# Variables of the driver's that take code away from every program, and the kind of entry that they leave (CUDA's
# programming guide, "CUDA Environment Variables").
_LEAVES = {"CUDA_FORCE_PTX_JIT": "compute", "CUDA_DISABLE_PTX_JIT": "sm"}


def barred_by(
    env: Mapping[str, str], build: Build, gpu: Gpu, driver: Driver, os: str, machine: str
) -> str | None:
    """The variable without which `build` would run on `gpu`, None where none stands in its way."""
    entries = known_archs(build, os, machine)
    if not entries or not verdict(build, gpu, driver, "", os, machine).runs:
        return None
    for name, kind in _LEAVES.items():
        left = replace(build, archs=tuple(entry for entry in entries if entry.kind == kind))
        in_force = env.get(name, "").strip() not in ("", "0")
        if in_force and not verdict(left, gpu, driver, "", os, machine).runs:
            return name
    return None


def _best(build: Build, entries: tuple[Arch, ...], cc: Capability, driver_cuda: Capability | None) -> Verdict:
    build_cuda = pair(builds.cuda_of(build))
    judged = [(covers(entry, cc, driver_cuda=driver_cuda, build_cuda=build_cuda), entry) for entry in entries]
    running = [(kind, entry) for kind, entry in judged if kind != "none"]
    if not running:
        return Verdict("none", "", _why_none(entries, cc, driver_cuda, build_cuda))
    kind, entry = min(running, key=lambda found: _nearness(*found))
    return Verdict(kind, str(entry), _why_runs(kind, entry, cc))


def _nearness(kind: Kind, entry: Arch) -> tuple[int, int, int, str]:
    """Native before same-major before compiled, then the newest entry, then the plain one."""
    return _ORDER.index(kind), -entry.major, -entry.minor, entry.suffix


def _why_runs(kind: Kind, entry: Arch, cc: Capability) -> str:
    if kind == "native":
        return f"{entry} is code for this very GPU"
    if kind == "jit":
        return f"the driver compiles {entry} for {sm(cc)} when it is first used: that start is slow"
    return f"it runs {entry} code, which is of its own major version"


def _why_none(
    entries: tuple[Arch, ...], cc: Capability, driver_cuda: Capability | None, build_cuda: Capability | None
) -> str:
    ptx = [entry for entry in entries if entry.kind == "compute" and covers(entry, cc) == "jit"]
    if ptx and driver_cuda and build_cuda:
        made, speaks = dotted(build_cuda), dotted(driver_cuda)
        return f"its {ptx[-1]} was made by CUDA {made}, and the driver speaks {speaks}, too old to compile it"
    if cc in _INTEGRATED and any(entry.kind == "sm" and entry.major == cc[0] for entry in entries):
        return f"{sm(cc)} is an integrated GPU, which runs code made for it alone"
    exact = [entry for entry in entries if entry.suffix == "a" and entry.major == cc[0]]
    if exact:
        return f"{exact[-1]} runs on {exact[-1].major}.{exact[-1].minor} alone, not on {dotted(cc)}"
    above = [entry for entry in entries if entry.kind == "sm" and entry.major == cc[0]]
    if above:
        return (
            f"{above[0]} needs a GPU of {above[0].major}.{above[0].minor} or above, and this is {dotted(cc)}"
        )
    return f"nothing that it has runs on {sm(cc)}"


@cache
def serving(cc: Capability, os: str, machine: str) -> tuple[Release, ...]:
    """The releases for this platform that have machine code for such a GPU.

    PTX alone does not count: it would start slowly, and somewhere a build has the code.
    """
    gpu = Gpu("", cc)
    kinds = {
        row: verdict(row.build(), gpu, None, "", os, machine).kind for row in builds.releases(os, machine)
    }
    return tuple(row for row, kind in kinds.items() if kind in ("native", "same-major"))


def is_integrated(cc: Capability | None) -> bool:
    """Whether this is the GPU of a Jetson."""
    return cc is not None and (cc in _INTEGRATED or _silicon(cc) == (11, 0))


def is_cpu(build: Build, os: str, machine: str) -> bool:
    """Whether this torch has no GPU code at all, by its own word or, untagged, by what PyPI serves here."""
    if build.cuda or build.hip or build.archs or not build.version:
        return False
    asked = TorchVersion.parse(build.version)
    local = asked.local if asked else ""
    if local:
        return not local.startswith(("cu", "rocm")) and (local == "cpu" or build.archs == ())
    return build.archs == () or builds.pypi_tag(build.version, os, machine) == "cpu"


def made_for(build: Build) -> str:
    """What a build without CUDA is, in words."""
    if build.hip:
        return "a ROCm build, for AMD GPUs"
    return "an XPU build, for Intel GPUs" if "+xpu" in (build.version or "") else "a CPU build"


def known_archs(build: Build, os: str, machine: str) -> tuple[Arch, ...] | None:
    """The build's own list, else the table's for its version here, else None."""
    if build.archs is not None or not build.version:
        return build.archs
    asked = TorchVersion.parse(build.version)
    untagged = asked is not None and not asked.local
    served = builds.pypi_tag(build.version, os, machine) or ""
    if untagged and build.cuda and cuda_of_tag(served) != build.cuda:
        return None  # no wheel of PyPI's, such as conda's own: the table speaks of wheels
    return builds.archs(build.version, os, machine)


def floor(build: Build | None, gpu: Gpu, os: str) -> str | None:
    """The oldest driver with which `build` can use `gpu`: the higher of CUDA's floor and the GPU's own."""
    by_gpu = builds.gpu_floor(gpu.cc)
    by_cuda = builds.cuda_floor(builds.cuda_of(build), os) if build else None
    floors = [found for found in (by_cuda, by_gpu[0] if by_gpu else None) if found]
    return max(floors, key=numbers) if floors else None


def driver_allows(driver: Driver, build: Build | None, gpu: Gpu, os: str) -> bool:
    """Whether the driver is new enough for the build and for the GPU. An unknown driver is taken to be."""
    if driver.version:
        needed = floor(None if _is_forward(driver, build, gpu, os) else build, gpu, os)
        new_enough = needed is None or at_least(driver.version, needed)
        return new_enough and not _of_an_unknown_cuda(driver, build, os)
    if driver.cuda is None:
        return True
    cuda = pair(builds.cuda_of(build)) if build else None
    by_gpu = builds.gpu_floor(gpu.cc)
    new_enough_for_gpu = by_gpu is None or driver.cuda >= (pair(by_gpu[1]) or (0, 0))
    return new_enough_for_gpu and (cuda is None or driver.cuda[0] >= cuda[0])


def _of_an_unknown_cuda(driver: Driver, build: Build | None, os: str) -> bool:
    """Whether the build's CUDA is newer than the table, and of a later major version than the driver speaks."""
    cuda = pair(builds.cuda_of(build)) if build else None
    if cuda is None or builds.cuda_floor(dotted(cuda), os):
        return False
    speaks = builds.driver_cuda(driver, os)
    return speaks is not None and speaks[0] < cuda[0] and not builds.newer_driver_than_table(driver, os)


_FOR_PEOPLE = re.compile(r"geforce|rtx|gtx|quadro|titan", re.IGNORECASE)
_DATACENTRE = re.compile(
    r"\btesla\b|\b(?:(?!A[45]00\b)[ABHLV]\d{1,3}[GMSX]?|GH\d{3}|GB\d{3}|P(?:4|6|40|100)|T4G?|K80|M(?:4|6|10|40|60))\b",
    re.IGNORECASE,
)


def _is_forward(driver: Driver, build: Build | None, gpu: Gpu, os: str) -> bool:
    """Whether forward compatibility is in force: a library of a newer CUDA (cuda-compat, as NVIDIA's own images have it)
    speaks for an older driver. NVIDIA allows it on datacentre GPUs alone; elsewhere it ends in error 804.
    """
    by_table = builds.driver_cuda(Driver(driver.version), os)
    cuda = pair(builds.cuda_of(build)) if build else None
    if driver.cuda is None or by_table is None or cuda is None or by_table[0] >= cuda[0]:
        return False
    return (
        driver.cuda[0] >= cuda[0] and bool(_DATACENTRE.search(gpu.name)) and not _FOR_PEOPLE.search(gpu.name)
    )


def sm(cc: Capability) -> str:
    """``(12, 0)`` -> ``"sm_120"``."""
    return f"sm_{cc[0]}{cc[1]}"


def listed(entries: Iterable[Arch]) -> str:
    """``"sm_50 to sm_90 and no PTX"``, ``"sm_75 to sm_120 and PTX for sm_120"``."""
    entries = tuple(entries)
    sass = [str(entry) for entry in sorted(e for e in entries if e.kind == "sm")]
    ptx = [str(entry) for entry in sorted(e for e in entries if e.kind == "compute")]
    span = {0: "no machine code", 1: sass[0] if sass else ""}.get(len(sass)) or f"{sass[0]} to {sass[-1]}"
    return f"{span} and {'PTX ' + ', '.join(ptx) if ptx else 'no PTX'}"
