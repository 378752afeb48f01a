"""The causes, one function each: it looks at a machine and says in words that it is so, or None. Pure.

`rules.py` asks them in the contract's order; the first that holds is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ambidex.device import builds, commands
from ambidex.device.covers import (
    barred_by,
    covers,
    driver_allows,
    floor,
    is_cpu,
    known_archs,
    listed,
    made_for,
    serving,
    sm,
    verdict,
)
from ambidex.device.diagnosis import Cause, Verdict
from ambidex.device.fixes import can_start, driver_floor, driver_os, present
from ambidex.device.machine import Extension, Gpu, Machine
from ambidex.device.naming import are, are_present, named, numbered
from ambidex.device.version import TorchVersion, at_least, dotted, numbers, pair

_HIDING = "CUDA_VISIBLE_DEVICES"
_SYMPTOM = '"no kernel image is available for execution on the device"'


def torch_missing(machine: Machine) -> Cause | None:
    if machine.build.broken or (machine.build.version and not machine.build.missing):
        return None
    return Cause("TORCH_MISSING", machine.build.missing or f"No torch is installed for {machine.executable}.")


def torch_broken(machine: Machine) -> Cause | None:
    return Cause("TORCH_BROKEN", machine.build.broken) if machine.build.broken else None


def unknown_build(machine: Machine) -> Cause | None:
    build = machine.build
    if not build.version or build.hip or is_cpu(build, machine.os, machine.machine):
        return None
    if known_archs(build, machine.os, machine.machine) is not None:
        return None
    text = f"What torch {build.version} has code for is not known: it cannot be read here and is in no table."
    return Cause("UNKNOWN_BUILD", text, _why_unknown(machine))


def _why_unknown(machine: Machine) -> str:
    return _why_not_in_table(machine) + _nightly_ended(machine)


def _why_not_in_table(machine: Machine) -> str:
    version, asked = machine.build.version or "", TorchVersion.parse(machine.build.version or "")
    if builds.newer_than_table(version):
        return (
            f"The table is of {builds.date()} and this torch is newer, which says nothing against it. "
            "Where it is installed, its own list is read."
        )
    tags = builds.tags_of(version, machine.os, machine.machine)
    if asked and asked.released and tags:
        here = f"{machine.os} {machine.machine}"
        return f"On {here} the table has torch {asked.base} as {', '.join(tags)} and cpu."
    if asked and asked.released:
        return f"The table has no torch {asked.base} with CUDA for {machine.os} {machine.machine}."
    return "The table has releases, and the nightlies of cu124. Where it is installed, its own list is read."


def cpu_build(machine: Machine) -> Cause | None:
    if not machine.gpus or not is_cpu(machine.build, machine.os, machine.machine):
        return None
    text = f"torch {machine.build.version} is {made_for(machine.build)}, and {are_present(machine.gpus)}."
    on_windows = (
        "It is what plain pip install brings on Windows: CUDA wheels are on PyTorch's own index alone."
    )
    why = on_windows if machine.os == "windows" else ""
    if not builds.platform(machine.os, machine.machine):
        why = f"PyTorch has no CUDA wheels for {machine.os} {machine.machine}."
    return Cause("CPU_BUILD", text, why)


def no_gpu(machine: Machine) -> Cause | None:
    if machine.gpus or container_no_gpu(machine):
        return None
    if machine.os == "macos":
        return Cause("NO_GPU", "This is a Mac: no NVIDIA GPU. torch computes on mps or on the CPU.")
    driver = f", although {present(machine)} is installed" if machine.driver.version else ""
    return Cause("NO_GPU", f"No NVIDIA GPU was found{driver}. The CPU works.")


def container_no_gpu(machine: Machine) -> Cause | None:
    """A build with GPU code, in a container that was given no GPU, or one that is listed without the driver's
    library to compute on it. A CPU build there is as it should be.
    """
    container = machine.container
    if not container.kind or container.gpu_passed is not False:
        return None
    if is_cpu(machine.build, machine.os, machine.machine):
        return None
    # Where the driver itself tells of a GPU (by its UUID), a device node that was not found says nothing.
    if any(gpu.uuid for gpu in machine.gpus) and not lacks_compute(machine):
        return None
    place, lack = (
        ("WSL", "has") if container.kind == "wsl" else (f"This {container.kind} container", "was given")
    )
    said = f"lists {named(machine.gpus)} and cannot compute there" if machine.gpus else f"{lack} no GPU"
    detail = container.detail.rstrip(".")
    return Cause("CONTAINER_NO_GPU", f"{place} {said}{f' ({detail})' if detail else ''}.")


def lacks_compute(machine: Machine) -> bool:
    """Whether the container has the GPU's device, and of its driver only what lists it: no libcuda."""
    return machine.container.gpu_passed is False and "libcuda" in machine.container.detail


def hidden_by_env(machine: Machine) -> Cause | None:
    if not machine.gpus or any(gpu.visible for gpu in machine.gpus):
        return None
    names = hiding_variables(machine)
    settings = " and ".join(f"{name}={machine.env[name]!r}" for name in names) or "The environment"
    return Cause("HIDDEN_BY_ENV", f"{settings} hides {numbered(machine.gpus)} from torch.")


def hiding_variables(machine: Machine) -> list[str]:
    """Those to blame: CUDA's own alone. NVIDIA's speaks to the container's runtime, and the order of the
    devices hides none.
    """
    return [_HIDING] if _HIDING in machine.env else []


def driver_old(machine: Machine) -> Cause | None:
    host = driver_os(machine)
    old = [gpu for gpu in considered(machine) if not driver_allows(machine.driver, machine.build, gpu, host)]
    if not old:
        return None
    oldest = max((floor(machine.build, gpu, host) or "" for gpu in old), key=numbers)
    needed = driver_floor(machine, machine.build, old) or oldest  # as the fix has it
    cuda = builds.cuda_of(machine.build)
    by_cuda = cuda and builds.cuda_floor(cuda, host) == needed
    who = f"torch {machine.build.version}, which is CUDA {cuda}," if by_cuda else named(old)
    if needed != oldest:
        who = f"{named(old)}, for which this build has PTX alone,"
    wants = f"{who} needs {needed} or newer"
    if cuda and not builds.cuda_floor(cuda, host):  # a CUDA newer than the table
        wants = f"torch {machine.build.version} needs one that speaks CUDA {numbers(cuda)[0]}"
    text = f"{present(machine).capitalize()} is too old: {wants}."
    return Cause("DRIVER_OLD", text, _why_driver(machine, old, by_cuda=bool(by_cuda)))


def _why_driver(machine: Machine, old: Sequence[Gpu], *, by_cuda: bool) -> str:
    speaks = builds.driver_cuda(machine.driver, driver_os(machine))
    floors = {found[0] for gpu in old if (found := builds.gpu_floor(gpu.cc))}
    sentences = [f"That driver speaks CUDA {dotted(speaks)}."] if speaks else []
    if floors and not (machine.driver.version and at_least(machine.driver.version, max(floors, key=numbers))):
        sentences.append(f"Blackwell GPUs need driver {max(floors, key=numbers)} or newer with any build.")
    if by_cuda:
        sentences.append("torch.cuda.is_available() is False on such a driver.")
    return " ".join(sentences)


def code_barred(machine: Machine) -> Cause | None:
    """The build has code for the GPU, and a variable keeps CUDA from it."""
    barred = [gpu for gpu in considered(machine) if barring(machine, gpu)]
    if not barred:
        return None
    name = barring(machine, barred[0]) or ""
    does, lacks = "take PTX alone", "has none that runs"
    if name == "CUDA_DISABLE_PTX_JIT":
        does, lacks = "compile no PTX", "has nothing else that runs"
    text = (
        f"{name}={machine.env[name]!r} makes CUDA {does}, and torch {machine.build.version} {lacks} on "
        f"{named(barred)}, so no kernel can start there ({_SYMPTOM})."
    )
    return Cause("ARCH_NONE", text, "The build is not to blame: without that variable it runs.")


def barring(machine: Machine, gpu: Gpu) -> str | None:
    return barred_by(machine.env, machine.build, gpu, machine.driver, machine.os, machine.machine)


def arch_none(machine: Machine) -> Cause | None:
    dead = [gpu for gpu in considered(machine) if _judged(machine, gpu).kind == "none"]
    if not dead or is_cpu(machine.build, machine.os, machine.machine):
        return None
    build, entries = machine.build, known_archs(machine.build, machine.os, machine.machine) or ()
    has = f"is {made_for(build)}" if build.hip else f"has code for {listed(entries)}"
    them = "it" if len(dead) == 1 else "them"
    who = are(dead, among=len(considered(machine)))
    text = f"{who}. torch {build.version} {has}, so no kernel can start on {them} ({_SYMPTOM})."
    working = [gpu for gpu in considered(machine) if can_start(machine, gpu)]
    if working:
        text += f" {numbered(working)} can be used: {commands.show_only(working, machine.os)}"
    whys = dict.fromkeys(why for gpu in dead if (why := _why_arch(machine, gpu)))
    said = " ".join(whys) + _nightly_ended(machine) + _driver_allows_cuda(machine)
    return Cause("ARCH_NONE", text, said.strip())


def _why_arch(machine: Machine, gpu: Gpu) -> str:
    cc, cuda = gpu.cc or (0, 0), builds.cuda_of(machine.build)
    first, dropped = builds.first_toolkit(cc), builds.dropped_by(cc)
    reason = _judged(machine, gpu).reason
    with_newest_driver = verdict(machine.build, gpu, None, machine.python, machine.os, machine.machine)
    if machine.build.hip:
        return ""  # the cause says it already
    if cuda is None or with_newest_driver.runs:
        return reason[0].upper() + reason[1:] + "."
    if not serving(cc, machine.os, machine.machine):
        return f"No PyTorch of the table has code for {sm(cc)} on {machine.os} {machine.machine}."
    if first and numbers(cuda) < numbers(first):
        why = f"CUDA {cuda} predates this GPU; {sm(cc)} needs a build with CUDA {first} or newer."
    elif dropped and numbers(cuda) >= numbers(dropped):
        why = f"CUDA {dropped} and newer make no code for {sm(cc)}; it needs a build with an older CUDA."
    else:
        why = f"This build leaves {sm(cc)} out: {reason}."
    return why


def _nightly_ended(machine: Machine) -> str:
    ended = builds.nightly_ended(machine.build.version or "")
    return f" The nightlies of its channel, {ended[0]}, ended on {ended[1]}." if ended else ""


def _driver_allows_cuda(machine: Machine) -> str:
    speaks = builds.driver_cuda(machine.driver, driver_os(machine))
    if not speaks or not machine.driver.version:
        return ""
    return f" Your driver {machine.driver.version} allows CUDA {speaks[0]}.x."


def extension_arch(machine: Machine, extensions: Sequence[Extension]) -> Cause | None:
    lacking = [
        (extension, gpu)
        for extension in extensions
        for gpu in considered(machine)
        if extension.archs and not extension_covers(extension, gpu, machine)
    ]
    if not lacking:
        return None
    said = dict.fromkeys(
        f"{extension.name} has nothing for {sm(gpu.cc or (0, 0))}, only {listed(extension.archs)}"
        for extension, gpu in lacking
    )
    return Cause(
        "EXTENSION_ARCH",
        "; ".join(said) + ".",
        'Whatever calls it dies with "no kernel image", torch or not.',
    )


def extension_covers(extension: Extension, gpu: Gpu, machine: Machine) -> bool:
    if gpu.cc is None:
        return True
    # Which CUDA made an extension's PTX is not known, so the driver is taken to be new enough for it.
    cuda = pair(builds.cuda_of(machine.build))
    found = (covers(entry, gpu.cc, build_cuda=cuda) for entry in extension.archs)
    return any(kind != "none" for kind in found)


def considered(machine: Machine) -> list[Gpu]:
    """The GPUs that are judged: the visible ones, or all where every one is hidden."""
    return [gpu for gpu in machine.gpus if gpu.visible] or list(machine.gpus)


IN_ORDER: tuple[Callable[[Machine], Cause | None], ...] = (
    torch_missing,
    torch_broken,
    unknown_build,
    cpu_build,
    no_gpu,
    container_no_gpu,
    hidden_by_env,
    driver_old,
    code_barred,
    arch_none,
)


def _judged(machine: Machine, gpu: Gpu) -> Verdict:
    return verdict(machine.build, gpu, machine.driver, machine.python, machine.os, machine.machine)
