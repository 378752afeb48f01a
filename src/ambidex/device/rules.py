"""The doctor's judgement: a machine's facts in, one cause, its reason and its fixes out. Pure, no I/O.

`judge` asks the causes in the contract's order and takes the first that holds; the others stand under `also`.
A probe that ran outranks the theory: what a real kernel did is so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ambidex.device import builds, causes, commands, gpus
from ambidex.device.causes import considered
from ambidex.device.covers import covers, driver_allows, is_cpu, sm, verdict
from ambidex.device.diagnosis import (
    EXIT_OF,
    Cause,
    CauseId,
    Diagnosis,
    DoctorExit,
    Fix,
    GpuVerdict,
    Kind,
    Verdict,
)
from ambidex.device.fixes import apart, can_start, driver_os, fixes, keep_and_update_driver
from ambidex.device.machine import Build, Driver, Extension, Gpu, Machine, Tried
from ambidex.device.variants import cpu_release, rows
from ambidex.device.version import numbers
from ambidex.errors import Problems

__all__ = ["covers", "fixes", "judge", "verdict"]

_WORST_FIRST: tuple[Kind, ...] = ("none", "unknown", "jit", "same-major", "native")
_NOTHING_RUNS: frozenset[CauseId] = frozenset(
    {"ARCH_NONE", "DRIVER_OLD", "CPU_BUILD", "NO_GPU", "HIDDEN_BY_ENV", "CONTAINER_NO_GPU"}
)
_NOT_KNOWN: frozenset[CauseId] = frozenset({"TORCH_MISSING", "TORCH_BROKEN", "UNKNOWN_BUILD", "PROBE_FAILED"})
# What a kernel that ran refutes. That an extension lacks code it does not: the probe calls none.
_REFUTED_BY_A_KERNEL: frozenset[CauseId] = frozenset(
    {"TORCH_BROKEN", "UNKNOWN_BUILD", "DRIVER_OLD", "ARCH_NONE"}
)


def judge(
    machine: Machine,
    *,
    extensions: Sequence[Extension] | None = None,
    probe: Sequence[Tried] | None = None,
    strict: bool = False,
) -> Diagnosis:
    """The one cause, the reason and the fixes. Where one GPU is asked about, give a machine with that alone.

    None for `extensions` or `probe` says that it was not done. With `strict`, CPU_BUILD and NO_GPU exit with
    10 instead of 0.
    """
    machine = _completed(machine)
    tried = {result.gpu: result for result in probe or ()}
    found = [cause for look in causes.IN_ORDER if (cause := look(machine))]
    lacking = causes.extension_arch(machine, extensions or ())
    found += [lacking] if lacking else []
    refuted: list[Cause] = []
    if _every_kernel_ran(machine, tried):
        refuted = [cause for cause in found if cause.id in _REFUTED_BY_A_KERNEL]
        found = [cause for cause in found if cause.id not in _REFUTED_BY_A_KERNEL]
    found += _seen_by_probe(machine, tried) + _not_readable(machine, tried)
    judged = tuple(_gpu_verdict(machine, gpu, tried.get(gpu.index)) for gpu in machine.gpus)
    cause = found[0] if found else _all_well(machine, judged, refuted)
    usable = _usable(machine, judged, cause)
    kind = _overall(cause, judged)
    return Diagnosis(
        verdict=kind,
        exit_code=_exit_code(cause, strict),
        cause=cause,
        gpus=judged,
        fixes=_fixes_for(cause, machine, extensions or (), kind),
        also=tuple(found[1:] + refuted),
        not_checked=_not_checked(machine, extensions, probe),
        table_date=builds.date(),
        cpu_now="" if cause.id in ("TORCH_MISSING", "TORCH_BROKEN") else "ambidex train --device cpu",
        usable=usable,
    )


def _completed(machine: Machine) -> Machine:
    """With what the table knows of it: the driver's CUDA, and the capability of a GPU known by name only."""
    speaks = builds.driver_cuda(machine.driver, driver_os(machine))
    known = tuple(gpu if gpu.cc else replace(gpu, cc=_by_name(gpu.name)) for gpu in machine.gpus)
    return replace(machine, driver=replace(machine.driver, cuda=speaks), gpus=known)


def _by_name(name: str) -> tuple[int, int] | None:
    try:
        return gpus.find(name).cc
    except Problems:
        return None


def _gpu_verdict(machine: Machine, gpu: Gpu, tried: Tried | None) -> GpuVerdict:
    said = Verdict("unknown", "", machine.build.broken or "there is no torch to judge")
    if machine.build.version:
        said = verdict(machine.build, gpu, machine.driver, machine.python, machine.os, machine.machine)
    name = causes.barring(machine, gpu) if said.runs else None
    if name:
        said = Verdict("none", "", f"{name}={machine.env[name]!r} keeps CUDA from its {said.covered_by}")
    if tried and tried.ok and gpu.cc is None:
        said = Verdict("unknown", "", "no table says what runs there, and kernels did")
    elif tried and tried.ok and not said.runs:
        said = Verdict(
            "unknown", "", f"by the table no kernel should start here ({said.reason}), yet one ran: it did"
        )
    return GpuVerdict(gpu, said, tried.ok if tried else None)


def _every_kernel_ran(machine: Machine, tried: dict[int, Tried]) -> bool:
    visible = [gpu for gpu in machine.gpus if gpu.visible]
    return bool(visible) and all(gpu.index in tried and tried[gpu.index].ok for gpu in visible)


def _seen_by_probe(machine: Machine, tried: dict[int, Tried]) -> list[Cause]:
    failed = [
        (gpu, tried[gpu.index]) for gpu in machine.gpus if gpu.index in tried and not tried[gpu.index].ok
    ]
    if not failed:
        return []
    gpu, result = failed[0]
    ids: dict[str, CauseId] = {known: known for known in EXIT_OF if known != "OK"}
    known = ids.get(result.cause, "PROBE_FAILED")
    text = (
        f"A real kernel failed on GPU {gpu.index} {gpu.name}: {result.text.rstrip('.') or 'no reason given'}."
    )
    surprising = known == "ARCH_NONE" and gpu.cc is not None
    return [Cause(known, text, "By the table it should have run." if surprising else "")]


def _not_readable(machine: Machine, tried: dict[int, Tried]) -> list[Cause]:
    """A GPU of unknown capability, on which no kernel was tried either: nothing can be said."""
    blank = [gpu for gpu in considered(machine) if gpu.cc is None and gpu.index not in tried]
    if not blank or not machine.build.version or is_cpu(machine.build, machine.os, machine.machine):
        return []
    who = f"GPU {blank[0].index} {blank[0].name}"
    text = f"The compute capability of {who} could not be read, and no kernel was tried."
    return [Cause("PROBE_FAILED", text)]


def _usable(machine: Machine, judged: Sequence[GpuVerdict], cause: Cause) -> tuple[Gpu, ...]:
    if cause.id in ("TORCH_MISSING", "TORCH_BROKEN", "CPU_BUILD"):
        return ()
    return tuple(
        found.gpu
        for found in judged
        if found.gpu.visible and (found.ran or (found.ran is None and _should_run(machine, found)))
    )


def _should_run(machine: Machine, found: GpuVerdict) -> bool:
    return found.verdict.runs and driver_allows(machine.driver, machine.build, found.gpu, driver_os(machine))


def _overall(cause: Cause, judged: Sequence[GpuVerdict]) -> Kind:
    """The worst of the visible GPUs, or what the cause leaves of it."""
    if cause.id in _NOTHING_RUNS:
        return "none"
    if cause.id in _NOT_KNOWN:
        return "unknown"
    kinds = {found.verdict.kind for found in judged if found.gpu.visible}
    return next((kind for kind in _WORST_FIRST if kind in kinds), "unknown")


def _exit_code(cause: Cause, strict: bool) -> int:
    code = EXIT_OF[cause.id]
    return int(DoctorExit.USABLE if code is DoctorExit.CPU_ONLY and not strict else code)


def _all_well(machine: Machine, judged: Sequence[GpuVerdict], refuted: Sequence[Cause]) -> Cause:
    visible = [found for found in judged if found.gpu.visible]
    said = "; ".join(_runs_on(found) for found in visible)
    if refuted:
        return Cause("OK", f"torch {machine.build.version} runs here: real kernels ran.", refuted[0].text)
    ran = " Real kernels ran." if visible and all(found.ran for found in visible) else ""
    return Cause("OK", f"torch {machine.build.version} runs on {said}.{ran}")


def _runs_on(found: GpuVerdict) -> str:
    cc = sm(found.gpu.cc) if found.gpu.cc else "capability unknown"
    return f"GPU {found.gpu.index} {found.gpu.name} ({cc}): {found.verdict.reason}"


def _fixes_for(
    cause: Cause, machine: Machine, extensions: Sequence[Extension], kind: Kind
) -> tuple[Fix, ...]:
    if cause.id == "OK":
        return fixes(machine) if kind == "jit" else ()
    if cause.id == "TORCH_BROKEN" and machine.build.shadow:
        return (Fix(why=f"Rename or move {machine.build.shadow}: nothing has to be installed."),)
    if cause.id in ("TORCH_MISSING", "TORCH_BROKEN"):
        return fixes(machine) or _on_the_cpu(machine)
    if cause.id == "UNKNOWN_BUILD" and builds.newer_than_table(machine.build.version or ""):
        return ()  # nothing speaks against it, so nothing is offered in its place
    barred = [name for gpu in considered(machine) if (name := causes.barring(machine, gpu))]
    if cause.id == "ARCH_NONE" and barred:
        typed = commands.unset(list(dict.fromkeys(barred)), machine.os)
        return (Fix((typed,), why="Then CUDA takes what the build has.", build=machine.build),)
    if cause.id in ("CPU_BUILD", "ARCH_NONE", "UNKNOWN_BUILD"):
        return fixes(machine)
    if cause.id == "DRIVER_OLD":
        return _for_an_old_driver(machine)
    if cause.id == "HIDDEN_BY_ENV":
        names = causes.hiding_variables(machine)
        if not names:
            return ()
        return _shown_again(machine, commands.unset(names, machine.os))
    if cause.id == "CONTAINER_NO_GPU":
        return (_grant_compute(machine) if causes.lacks_compute(machine) else _pass_the_gpu(machine),)
    if cause.id == "EXTENSION_ARCH":
        return _renew_extensions(machine, extensions)
    return ()


def _shown_again(machine: Machine, typed: str) -> tuple[Fix, ...]:
    """The GPU is shown again; where this torch would not run on it even so, also with what mends that."""
    shown = Fix((typed,), why="Then torch sees the GPU again.", build=machine.build)
    all_known = all(gpu.cc for gpu in machine.gpus)
    if not all_known or any(can_start(machine, gpu) for gpu in machine.gpus):
        return (shown,)
    allowed = all(
        driver_allows(machine.driver, machine.build, gpu, driver_os(machine)) for gpu in machine.gpus
    )
    ways = fixes(machine) if allowed else _for_an_old_driver(machine)
    if not ways:
        return (shown,)
    shown = replace(shown, why=f"{shown.why} This torch does not run on it even so: both are mended below.")
    return (shown, *(replace(way, commands=(typed, *way.commands)) for way in ways))


def _for_an_old_driver(machine: Machine) -> tuple[Fix, ...]:
    """A build for the present driver first, if there is one; then the driver, and torch may stay as it is."""
    found = fixes(machine)
    kept = keep_and_update_driver(machine)
    if kept is None:
        return found
    for_this_driver = [fix for fix in found if "driver" not in fix.requires]
    newer = [fix for fix in found if fix not in for_this_driver and _torch_of(fix) > _torch_of(kept)]
    return (*for_this_driver, kept, *newer)


def _torch_of(fix: Fix) -> tuple[int, ...]:
    version = fix.build.version if fix.build else None
    return numbers((version or "").partition("+")[0])


def _on_the_cpu(machine: Machine) -> tuple[Fix, ...]:
    version, index, python = cpu_release(machine)
    if not version:
        why = (
            f"PyPI has no torch for {machine.os} {machine.machine}. PyTorch's own index may have one for the CPU: "
            f"{rows()['cpu']['index']}"
        )
        return (Fix(why=why),)
    requirement = f"torch=={version}"
    none = "No build of the table has code for the GPU here" if machine.gpus else "No NVIDIA GPU was found"
    why = f"{none}, so this one is for the CPU."
    if python:
        why += f" It has no wheels for Python {machine.python}, and has them for {python}."
        typed = commands.elsewhere(machine, python, requirement, index)
    else:
        why += apart(machine)
        typed = commands.reinstall(machine, requirement, index)
    installs = (requirement, *machine.companions)
    build = Build(version, archs=(), source="table")
    return (Fix(typed, installs, {"python": python} if python else {}, why, build),)


def _pass_the_gpu(machine: Machine) -> Fix:
    ways = {
        "docker": (
            "docker run --gpus all ...",
            "Start the container with the GPU; in compose: `gpus: all`. The host needs its driver and the "
            "NVIDIA Container Toolkit.",
        ),
        "podman": (
            "podman run --device nvidia.com/gpu=all ...",
            "Start the container with the GPU. The host needs its driver and a CDI file (nvidia-ctk cdi).",
        ),
        "wsl": (
            "wsl --update",
            "Update WSL and the NVIDIA driver in Windows; install no Linux driver inside.",
        ),
    }
    ways["apptainer"] = (
        "apptainer exec --nv ...",
        "Start the container with --nv (singularity has the same flag). The host needs its driver.",
    )
    otherwise = (
        "",
        "Ask for the GPU where the container is started; in Kubernetes: resources.limits nvidia.com/gpu: 1.",
    )
    typed, why = ways.get(machine.container.kind, otherwise)
    return Fix((typed,) if typed else (), why=why, build=machine.build)


def _grant_compute(machine: Machine) -> Fix:
    """For the containers that take the driver's capabilities from this variable; others pass the whole GPU."""
    setting = "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    if machine.container.kind == "docker":
        typed = (f"docker run --gpus all -e {setting} ...",)
        why = f"Start the container with the driver's compute capability; in compose: environment: {setting}."
        return Fix(typed, why=why, build=machine.build)
    if machine.container.kind == "kubernetes":
        why = f"Set {setting} in the container's env and start it again."
        return Fix((), why=why, build=machine.build)
    return _pass_the_gpu(machine)


def _renew_extensions(machine: Machine, extensions: Sequence[Extension]) -> tuple[Fix, ...]:
    found = []
    beside: list[str] = []
    for extension in extensions:
        lacking = [
            gpu.cc
            for gpu in considered(machine)
            if gpu.cc and extension.archs and not causes.extension_covers(extension, gpu, machine)
        ]
        if lacking and extension.name in machine.companions:
            beside.append(extension.name)
        elif lacking:
            name = extension.name
            settings = commands.build_settings(name, lacking, machine.os)
            source = f"build it from source after {settings}" if settings else "its source makes none either"
            why = f"A newer {name} may carry the code; if it does not, {source}."
            found.append(Fix(commands.renew(machine, name), (name,), why=why, build=machine.build))
    return (*([_renew_companions(machine, beside)] if beside else []), *found)


def _renew_companions(machine: Machine, lacking: Sequence[str]) -> Fix:
    """torch as it is and its companions with it, from its own index: alone they come made for another torch."""
    names, version = " and ".join(lacking), machine.build.version or ""
    made = f"{names} {'are' if len(lacking) > 1 else 'is'} made for one torch and one CUDA"
    row = builds.find(version, machine.os, machine.machine)
    same = row is not None and builds.cuda_of(machine.build) == row.cuda
    if row is None or not same or not all(_serves(row, gpu, machine) for gpu in considered(machine)):
        why = f"{made}: install {names} anew together with torch {version}, from the index or channel that has it."
        return Fix(why=why, build=machine.build)
    requirement = f"torch=={row.version}"
    return Fix(
        commands.reinstall(machine, requirement, row.index),
        (requirement, *machine.companions),
        why=f"{made}: these are for torch {row.version}.",
        build=row.build(machine.python),
    )


def _serves(row: builds.Release, gpu: Gpu, machine: Machine) -> bool:
    build = row.build()
    return gpu.cc is None or verdict(build, gpu, machine.driver, "", machine.os, machine.machine).runs


def _not_checked(
    machine: Machine, extensions: Sequence[Extension] | None, probe: Sequence[Tried] | None
) -> tuple[str, ...]:
    said = []
    if probe is None:
        said.append("no kernel was run: this is from theory")
    if extensions is None:
        said.append("extension libraries were not scanned")
    if machine.gpus and machine.driver == Driver():
        said.append("the driver is not known and was taken to be new enough")
    elif not machine.gpus and machine.driver.version is None:
        said.append("a GPU without a driver cannot be seen from here")
    if any(gpu.visible for gpu in machine.gpus):
        said += [
            f"GPU {gpu.index} {gpu.name} is hidden by the environment"
            for gpu in machine.gpus
            if not gpu.visible
        ]
    if machine.build.hip:
        said.append("AMD GPUs are not looked at")
    version = machine.build.version
    if version and machine.build.source == "scanned" and builds.newer_than_table(version):
        said.append(f"torch {version} is newer than the table of {builds.date()}: judged by its own list")
    if machine.build.source == "table":
        said.append(
            f"what torch {version} has code for is from the table of {builds.date()}, not read from it"
        )
    return tuple(said)
