"""What to install, in the order in which to try it. Every build that is offered is a row of the table.

First the newest torch that this Python, OS, machine and driver allow with code for the GPU, from the stable
indexes (at the same torch the lower CUDA). Indexes that have ended come after them, and the one that PyTorch
calls unsupported last. No nightly is offered: none that has ended has code that a release lacks, and one that
floats is in no table. Where no build runs on the present driver, the driver comes first; else a newer driver
is the second fix, where it would allow a newer torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ambidex.device import builds, commands
from ambidex.device.builds import Release
from ambidex.device.covers import driver_allows, floor, is_integrated, serving, verdict
from ambidex.device.diagnosis import Fix
from ambidex.device.machine import Build, Driver, Gpu, Machine
from ambidex.device.naming import capabilities, numbered
from ambidex.device.version import numbers, pair

_TIERS = {"stable": 0, "ended": 1, "unsupported": 2}


def fixes(machine: Machine) -> tuple[Fix, ...]:
    """Ways to a torch that runs on all of the machine's visible GPUs, best first.

    Where no build covers all of them, the GPU that works is to be shown alone, and a build is offered that
    covers the most, the newest GPU among them. Empty where no build of the table has code for any. A GPU
    whose capability is unknown is left out of account.
    """
    wanted = [gpu for gpu in _asked(machine) if gpu.cc is not None]
    if not wanted:
        return ()
    covered = _most(machine, wanted)
    if not covered:
        return ()
    left = [gpu for gpu in wanted if gpu not in covered]
    working = [gpu for gpu in wanted if can_start(machine, gpu)]
    shown = [_show_only(machine, working, [gpu for gpu in wanted if gpu not in working])]
    if left and _worth(working) >= _worth(covered):
        return tuple(shown)  # no other build would serve more of them, or newer ones
    found = _ways(machine, covered)
    return tuple(_naming(fix, covered, left) for fix in (shown if left and working else []) + found)


def keep_and_update_driver(machine: Machine) -> Fix | None:
    """The fix that leaves torch alone: a newer driver, where the present build has code for every GPU."""
    wanted = [gpu for gpu in _asked(machine) if gpu.cc is not None]
    build = machine.build
    needed = driver_floor(machine, build, wanted)
    if needed is None:
        return None
    newer = Driver(needed)
    newer = replace(newer, cuda=builds.driver_cuda(newer, driver_os(machine)))
    if not all(_runs(build, gpu, machine, newer) for gpu in wanted):
        return None
    why = f"{update_driver(machine, needed)}; torch {build.version} then runs as it is."
    return Fix(requires={"driver": needed}, why=why, build=build)


def can_start(machine: Machine, gpu: Gpu) -> bool:
    """Whether the present build runs on the GPU as things are: it has the code, and the driver is new enough."""
    allowed = driver_allows(machine.driver, machine.build, gpu, driver_os(machine))
    return allowed and _runs(machine.build, gpu, machine, machine.driver)


def _runs(build: Build, gpu: Gpu, machine: Machine, driver: Driver) -> bool:
    """Whether the build has code for the GPU, its PTX counted where this driver compiles it."""
    known = build.version and not build.broken
    return bool(known) and verdict(build, gpu, driver, machine.python, machine.os, machine.machine).runs


def update_driver(machine: Machine, needed: str) -> str:
    """Words for whoever has to update the driver, without a full stop."""
    if machine.container.kind == "wsl":
        return f"Update the NVIDIA driver in Windows, not inside WSL, to {needed} or newer"
    if machine.container.kind:
        return f"Update the NVIDIA driver on the host to {needed} or newer"
    if any(is_integrated(gpu.cc) for gpu in machine.gpus):
        return f"Update JetPack to one whose driver is {needed} or newer"
    return f"Update the NVIDIA driver to {needed} or newer"


def driver_os(machine: Machine) -> str:
    """Whose driver numbers count: in WSL the driver is Windows' own."""
    return "windows" if machine.container.kind == "wsl" else machine.os


def driver_floor(machine: Machine, build: Build | None, gpus: Iterable[Gpu]) -> str | None:
    """The oldest driver that serves all of `gpus` with `build`."""
    each = [(floor(build, gpu, driver_os(machine)), _ptx_floor(machine, build, gpu)) for gpu in gpus]
    floors = [found for both in each for found in both if found]
    return max(floors, key=numbers) if floors else None


def _ptx_floor(machine: Machine, build: Build | None, gpu: Gpu) -> str | None:
    """The first driver that speaks the build's CUDA, where nothing but its PTX runs on the GPU."""
    cuda = pair(builds.cuda_of(build)) if build else None
    if build is None or cuda is None:
        return None
    if verdict(build, gpu, None, machine.python, machine.os, machine.machine).kind != "jit":
        return None
    first = builds.table()["drivers"]["cuda"]["windows" if driver_os(machine) == "windows" else "linux"]
    return next((driver for driver, speaks in first.items() if (pair(speaks) or (0, 0)) >= cuda), None)


def _asked(machine: Machine) -> list[Gpu]:
    """The GPUs to serve: the visible ones, or all of them where every one is hidden."""
    return [gpu for gpu in machine.gpus if gpu.visible] or list(machine.gpus)


def _most(machine: Machine, wanted: Sequence[Gpu]) -> list[Gpu]:
    """The GPUs that one build can serve together: as many as can be, and then the newest."""
    best: list[Gpu] = []
    for release in builds.releases(machine.os, machine.machine):
        served = [gpu for gpu in wanted if _has_code(release, gpu, machine)]
        if _worth(served) > _worth(best):
            best = served
    return best


def _worth(gpus: Sequence[Gpu]) -> tuple[int, list[tuple[int, int]]]:
    return len(gpus), sorted((gpu.cc or (0, 0) for gpu in gpus), reverse=True)


def _has_code(release: Release, gpu: Gpu, machine: Machine) -> bool:
    return gpu.cc is not None and release in serving(gpu.cc, machine.os, machine.machine)


def _ways(machine: Machine, gpus: Sequence[Gpu]) -> list[Fix]:
    fitting = [
        release
        for release in builds.releases(machine.os, machine.machine)
        if all(_has_code(release, gpu, machine) for gpu in gpus)
    ]
    here = [release for release in fitting if release.allows(machine.python)]
    if not here:
        return _with_another_python(machine, fitting, gpus)
    running = [release for release in here if _driver_allows(machine, release, gpus)]
    newest = _best(here)
    if not running:
        return [_driver_first(machine, newest, gpus)]
    first = _best(running)
    found = [_now(machine, first, gpus)]
    if machine.driver.version is None and machine.driver.cuda is None:
        return found + _for_older_drivers(machine, here, first, gpus)
    if numbers(newest.torch) > numbers(first.torch):
        found.append(_with_newer_driver(machine, newest, gpus))
    return found


def _best(releases: Iterable[Release]) -> Release:
    """Stable before ended before unsupported, then the newest torch, then the lower CUDA."""
    return min(
        releases,
        key=lambda release: (
            _TIERS[release.state],
            *(-part for part in numbers(release.torch)),
            numbers(release.cuda),
        ),
    )


def _driver_allows(machine: Machine, release: Release, gpus: Iterable[Gpu]) -> bool:
    return all(driver_allows(machine.driver, release.build(), gpu, driver_os(machine)) for gpu in gpus)


def _fix(machine: Machine, release: Release, requires: dict[str, str], why: str, python: str = "") -> Fix:
    requirement = f"torch=={release.version}"
    typed = (
        commands.elsewhere(machine, python, requirement, release.index)
        if python
        else commands.reinstall(machine, requirement, release.index)
    )
    build = release.build(python or machine.python)
    why += "" if python else apart(machine)
    return Fix(typed, (requirement, *machine.companions), requires, why, build)


def apart(machine: Machine) -> str:
    """Why a new environment is made for torch, where one is."""
    if machine.installer != "system":
        return ""
    return " The system's Python takes no packages from pip (PEP 668), so torch goes into an environment of its own."


def _now(machine: Machine, release: Release, gpus: Sequence[Gpu]) -> Fix:
    unknown_driver = machine.driver.version is None and machine.driver.cuda is None
    needed = driver_floor(machine, release.build(), gpus)
    until = f" It needs driver {needed} or newer." if unknown_driver and needed else ""
    why = f"torch {release.version} has code for {capabilities(gpus)}{_on_this(machine, release)}.{until}"
    return _fix(machine, release, {}, why)


def _on_this(machine: Machine, release: Release) -> str:
    """What kept the choice from being the newest torch of all, where something did."""
    if release.state == "unsupported":
        return ", from an index that PyTorch calls unsupported: nothing else has it"
    known = machine.driver.version or machine.driver.cuda
    allow = (
        f"Python {machine.python} and {present(machine)} allow"
        if known
        else f"Python {machine.python} allows"
    )
    return f" and is the newest that {allow}"


def _driver_first(machine: Machine, release: Release, gpus: Sequence[Gpu]) -> Fix:
    needed = driver_floor(machine, release.build(), gpus) or ""
    why = (
        f"{update_driver(machine, needed)} first: no build with code for {capabilities(gpus)} runs on "
        f"{present(machine)}. Then install torch {release.version}."
    )
    return _fix(machine, release, {"driver": needed}, why)


def _with_newer_driver(machine: Machine, release: Release, gpus: Sequence[Gpu]) -> Fix:
    needed = driver_floor(machine, release.build(), gpus) or ""
    why = f"{update_driver(machine, needed)} and use torch {release.version}, which is newer."
    return _fix(machine, release, {"driver": needed}, why)


def _for_older_drivers(
    machine: Machine, here: Sequence[Release], first: Release, gpus: Sequence[Gpu]
) -> list[Fix]:
    """Where the driver is not known: what to take if it turns out too old for the first choice."""
    needed = numbers(driver_floor(machine, first.build(), gpus) or "")
    older = [
        release for release in here if numbers(driver_floor(machine, release.build(), gpus) or "") < needed
    ]
    if not older:
        return []
    best = _best(older)
    least = driver_floor(machine, best.build(), gpus) or ""
    below = ".".join(map(str, needed))
    why = f"torch {best.version} is the newest for a driver from {least} to just below {below}."
    return [_fix(machine, best, {}, why)]


def _with_another_python(machine: Machine, fitting: Sequence[Release], gpus: Sequence[Gpu]) -> list[Fix]:
    running = [release for release in fitting if _driver_allows(machine, release, gpus)]
    release = _best(running or fitting)
    first, last = release.pythons
    # The newest that the build allows: a Python that is near an end is soon out of the next table.
    requires = {"python": last}
    why = (
        f"No build with code for {capabilities(gpus)} has wheels for Python {machine.python}; "
        f"torch {release.version} has them for Python {first} to {last}."
    )
    if not running:
        needed = driver_floor(machine, release.build(), gpus) or ""
        requires["driver"] = needed
        why = f"{update_driver(machine, needed)} first. {why}"
    return [_fix(machine, release, requires, why, last)]


def present(machine: Machine) -> str:
    """The present driver in words: "driver 560.94"."""
    if machine.driver.version:
        return f"driver {machine.driver.version}"
    return "the present driver"


def _show_only(machine: Machine, working: Sequence[Gpu], rest: Sequence[Gpu]) -> Fix:
    names, others = numbered(working), numbered(rest)
    verb, them = ("works", "that one") if len(working) == 1 else ("work", "those")
    why = f"{names} {verb} with this torch, and no build serves {others} as well: show torch {them} alone."
    return Fix((commands.show_only(working, machine.os),), why=why, build=machine.build)


def _naming(fix: Fix, covered: Sequence[Gpu], left: Sequence[Gpu]) -> Fix:
    """Says which GPU is served where not all can be, and shows torch that one alone."""
    if not left or not fix.installs:
        return fix
    why = f"{fix.why} It serves {numbered(covered)}; no build serves {numbered(left)} as well."
    return replace(fix, why=why)
