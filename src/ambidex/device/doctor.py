"""The doctor: look, judge, and answer whether this build will run on this machine, why, and what to type.

From theory in well under a second, without importing torch; then, where a GPU is visible, by real kernels in
a child process. `from ambidex import doctor, gpu_usable` is for other projects.
"""

from __future__ import annotations

import os as system
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ambidex.device import builds, facts, hiding, image, rules
from ambidex.device import probe as probing
from ambidex.device.asked import texts, understood
from ambidex.device.diagnosis import EXIT_OF, Cause, CauseId, Diagnosis, Fix
from ambidex.device.environment import Environment
from ambidex.device.facts import Facts, may_have_gpu
from ambidex.device.fixes import driver_os, update_driver
from ambidex.device.gpus_seen import Seen
from ambidex.device.machine import Gpu, Machine, Tried
from ambidex.device.probe import Probe
from ambidex.device.report import Report
from ambidex.errors import Problem, Problems

if TYPE_CHECKING:
    from ambidex.device.extensions import Scan

_T = TypeVar("_T")


@dataclass(frozen=True)
class Judged:
    """One answer: the exit code, the cause's id, a sentence for one line, and the whole text."""

    exit_code: int
    cause: str
    sentence: str
    text: str


def doctor(
    *,
    device: str = "auto",
    probe: bool = True,
    strict: bool = False,
    python_env: str | Path | None = None,
    torch: str | None = None,
    gpu: str | None = None,
    driver: str | None = None,
    python: str | None = None,
    os: str | None = None,
    machine: str | None = None,
    wrong: Sequence[Problem] = (),
    see: Callable[..., Facts] = facts.look,
    run_probe: Callable[..., Probe] = probing.run,
) -> Report:
    """The report on this machine, or, where any of ``torch`` to ``machine`` is given, on the supposed one.

    ``device`` is auto, cpu, cuda, cuda:N or mps; one asked for by name is judged strictly. ``probe`` False
    keeps to theory. Raises `Problems` (exit 2) with every argument that cannot be understood, after those
    that the caller found ``wrong`` already.
    """
    words = {"torch": torch, "gpu": gpu, "driver": driver, "python": python, "os": os, "machine": machine}
    given = {name: word for name, word in {**words, "python_env": python_env}.items() if word is not None}
    given |= {"python_env": str(python_env)} if isinstance(python_env, Path) else {}
    texts(wrong, device=device, **given)
    problems = list(wrong)
    device = _read(lambda: understood(device, "flag"), problems) or "auto"
    supposed = any(word is not None for word in (torch, gpu, driver, python, os, machine))
    looked = _read(
        lambda: see(python_env) if gpu is None else see(python_env, look_at_gpus=lambda *_: Seen()), problems
    )
    found = looked or Facts(Machine(), Environment("python", "", Path(), ()))
    if supposed:
        elsewhere = any(word is not None for word in (torch, python, os, machine)) and python_env is None
        here = _as_if_elsewhere(found.machine) if elsewhere else found.machine
        from ambidex.device import whatif  # what few runs need is not loaded by every one

        imagined = _read(lambda: whatif.machine_from(**words, here=_unhidden(here)), problems) or here
        notes = whatif.not_installable(imagined) if torch is not None and not problems else ()
        notes += whatif.not_driven(imagined)
        notes += whatif.taken_for_granted(imagined, os=os, machine=machine, python=python)
        found = replace(found, machine=replace(imagined, cpu=found.machine.cpu), notes=notes)
    if problems:
        raise Problems(problems)
    scan = _scanned(found) if torch is None else None
    tried = None
    if probe and not supposed and device != "cpu" and found.environment.program and may_have_gpu(found):
        tried = run_probe(found.environment.program)
    diagnosis = diagnose(found, scan=scan, probe=tried, device=device, strict=strict)
    # What is asked about another build or another computer is not asked about this image.
    asked_here = not any(word is not None for word in (torch, python, os, machine, python_env))
    inside = image.read() if asked_here else None
    return Report(
        facts=found,
        diagnosis=image.with_image(diagnosis, inside, found.machine),
        probe=tried,
        scan=scan,
        device=device,
        supposed=supposed,
        image=inside,
    )


def gpu_usable(device: str = "cuda", *, probe: bool = False) -> bool:
    """Whether the installed torch runs on a GPU here (on that one, for ``cuda:1``). Imports no torch.

    From theory by default, in a fraction of a second; with ``probe`` by real kernels in a child process.
    """
    return doctor(device=device, probe=probe, strict=True).exit_code == 0


def judged(found: Facts, *, probe: Probe | None = None, device: str = "auto", strict: bool = False) -> Judged:
    """The doctor's word on facts gathered elsewhere: what `choose` says when a GPU is not to be had."""
    diagnosis = diagnose(found, probe=probe, device=device, strict=strict)
    diagnosis = image.with_image(diagnosis, image.read(), found.machine)
    cause = diagnosis.cause
    report = Report(facts=found, diagnosis=diagnosis, probe=probe, scan=None, device=device, supposed=False)
    return Judged(diagnosis.exit_code, cause.id, cause.text.rstrip("."), report.answer())


def diagnose(
    found: Facts,
    *,
    scan: Scan | None = None,
    probe: Probe | None = None,
    device: str = "auto",
    strict: bool = False,
) -> Diagnosis:
    """Facts judged by the rules, with what probe and extension scan add, for the device asked about."""
    machine, tried = _with_probe(found, probe)
    strict = strict or device not in ("auto", "cpu")

    def judge(one: Machine) -> Diagnosis:
        answer = rules.judge(
            one, extensions=None if scan is None else scan.extensions, probe=tried, strict=strict
        )
        answer = replace(answer, not_checked=(*answer.not_checked, *(scan.notes if scan else ())))
        if answer.cause.id == "NO_GPU":
            notes = "; ".join(found.seen.notes)
            reason = _unlisted(one, probe, notes)
            answer = replace(answer, cause=replace(answer.cause, why=notes or answer.cause.why))
            last = found.seen.last_driver
            way = _older_driver(one, last) if last and one.driver.version else None
            if found.seen.undriven and not one.container.kind:
                way = _first_driver(one, last)
            answer = replace(answer, fixes=(way, *answer.fixes)) if way else answer
            if reason is not None:
                way_out = _newer_driver(one) if reason.id == "DRIVER_OLD" else ()
                answer = replace(_instead(answer, reason), fixes=way_out)
        return _hanging(answer, found) if found.seen.hangs else answer

    if device == "cpu":
        return _on_cpu(judge(machine), machine)
    if device == "mps" or (device == "auto" and _mps_ran(probe)):
        return _on_mps(judge(machine), machine, probe)
    return judge(machine) if device == "auto" else _on_cuda(judge, machine, probe, device)


def _read(ask: Callable[[], _T], problems: list[Problem]) -> _T | None:
    """What was asked for, or None with what is wrong put to the rest of it."""
    try:
        return ask()
    except Problems as found:
        problems.extend(found.problems)
        return None


def _as_if_elsewhere(machine: Machine) -> Machine:
    """For another computer's sake: this one's paths and its installer mean nothing there."""
    return replace(machine, executable="python", installer="pip")


def _unhidden(machine: Machine) -> Machine:
    """What if does not ask what this shell's variables hide."""
    return replace(machine, gpus=tuple(replace(gpu, visible=True) for gpu in machine.gpus))


def _scanned(found: Facts) -> Scan | None:
    """The extensions beside torch; None where no GPU or no torch makes them worth a look."""
    machine = found.machine
    if not machine.gpus or machine.build.missing or machine.build.cuda is None:
        return None
    from ambidex.device import extensions

    places = list(found.environment.places)
    if machine.build.path:
        places.append(Path(machine.build.path).parent)
    return extensions.scan(places, keep=extensions.cache_file(system.environ))


def _with_probe(found: Facts, probe: Probe | None) -> tuple[Machine, list[Tried] | None]:
    """The machine with what only the probe saw, and what happened on each GPU, under the numbers of the
    rules.
    """
    machine = found.machine
    if probe is None or not probe.ran:
        return machine, None
    if probe.cause == "import_failed":
        return replace(machine, build=replace(machine.build, broken=_with_remedy(probe.text))), None
    if not machine.gpus:
        seen = tuple(
            Gpu(one.name, None if machine.build.hip else one.cc, number, one.uuid)
            for number, one in enumerate(probe.devices)
            if one.device.startswith("cuda")
        )
        machine = replace(machine, gpus=seen)
    visible = hiding.numbered(machine.gpus, machine.env, machine.os)
    if not probe.devices:
        cause, text = _told(probe.cause, probe.text, machine)
        return machine, [Tried(gpu.index, False, cause, text) for gpu in visible]
    if machine.container.kind:  # CUDA started, so its library is there, wherever it lies
        machine = replace(machine, container=replace(machine.container, gpu_passed=True))
    return machine, [
        Tried(gpu.index, one.ok, *(("", "") if one.ok else _told(one.cause, one.text, machine)))
        for gpu, one in _matched(visible, probe)
    ]


def _with_remedy(text: str) -> str:
    """What kept torch from being imported, with its cause where a new copy of torch may not mend it."""
    from ambidex.device import fingerprints

    for known, _ in fingerprints.matches(text):
        if known.id in ("glibc", "libstdcxx", "shadowed", "symbol_nvjitlink", "symbol_mkl", "dll_missing"):
            return f"{text}. Before torch is installed anew: {known.fix}"
    return text


def _matched(visible: Sequence[Gpu], probe: Probe) -> list[tuple[Gpu, probing.DeviceProbe]]:
    """Each probed device with its GPU: by UUID, which both sides know, else as the process numbers them."""
    by_uuid = {gpu.uuid: gpu for gpu in visible if gpu.uuid}
    left = list(visible)
    pairs = []
    for one in probe.devices:
        alike = [gpu for gpu in left if gpu.name == one.name]
        gpu = by_uuid.get(one.uuid) or next(iter(alike or left), None)
        if gpu is None:
            break
        left = [other for other in left if other is not gpu]
        pairs.append((gpu, one))
    return pairs


def _told(fingerprint: str, text: str, machine: Machine) -> tuple[str, str]:
    """The cause's id and its words; what the rules have no cause for brings its own remedy.

    An error's words alone do not outweigh what was seen: with a GPU listed, "no driver" is not "no GPU".
    """
    from ambidex.device import fingerprints

    known = next((one for one in fingerprints.KNOWN if one.id == fingerprint), None)
    if known is None:
        return "PROBE_FAILED", text
    if known.doctor in ("", "PROBE_FAILED"):
        return "PROBE_FAILED", f"{text}. {known.cause} Remedy: {known.fix}"
    if not machine.gpus:
        return known.doctor, text
    if known.doctor == "HIDDEN_BY_ENV" and not hiding.hides(machine.gpus, machine.env, machine.os):
        return "PROBE_FAILED", f"{text}, although no variable hides a GPU"
    if known.doctor == "NO_GPU" and machine.container.gpu_passed is False:
        return "CONTAINER_NO_GPU", text
    if known.doctor == "NO_GPU":
        return "PROBE_FAILED", f"{text}. {known.cause} Remedy: {known.fix}"
    return known.doctor, text


def _unlisted(machine: Machine, probe: Probe | None, why: str) -> Cause | None:
    """What kept CUDA from starting where no GPU is listed, unless it says only that there is none."""
    if machine.gpus or probe is None or not probe.ran or not probe.cause:
        return None
    told, text = _told(probe.cause, probe.text, machine)
    ids: dict[str, CauseId] = {known: known for known in EXIT_OF}
    return None if told in ("NO_GPU", "HIDDEN_BY_ENV") else Cause(ids[told], f"{text.rstrip('.')}.", why)


def _newer_driver(machine: Machine) -> tuple[Fix, ...]:
    """What the build's CUDA asks of the driver; the unlisted GPU may ask for more."""
    needed = builds.cuda_floor(builds.cuda_of(machine.build), driver_os(machine))
    if needed is None:
        return ()
    why = f"{update_driver(machine, needed)}: torch {machine.build.version} needs it."
    return (Fix(requires={"driver": needed}, why=why, build=machine.build),)


def _first_driver(machine: Machine, last: str) -> Fix:
    """The driver that is not there: without it nobody can tell which GPU it is."""
    needed = "" if last else builds.cuda_floor(builds.cuda_of(machine.build), driver_os(machine))
    version = (
        f", {needed} or newer" if needed else f" of the {last} branch, the last for this GPU" if last else ""
    )
    why = (
        f"Install the NVIDIA driver{version} (on Ubuntu: sudo ubuntu-drivers install; elsewhere the distribution's "
        "package), restart, and ask again: it tells which GPU this is."
    )
    return Fix(requires={"driver": needed} if needed else {}, why=why, build=machine.build)


def _older_driver(machine: Machine, last: str) -> Fix:
    """The present driver is too new for the GPU."""
    where = " on the host" if machine.container.kind else ""
    why = (
        f"Install a driver of the {last} branch{where} (on Ubuntu: sudo apt install nvidia-driver-{last}) in place of "
        f"{machine.driver.version}, which is too new for this GPU, and restart."
    )
    return Fix(why=why, build=machine.build)


def _hanging(answer: Diagnosis, found: Facts) -> Diagnosis:
    """A driver that does not answer leaves open whether there is a GPU; a CPU build does not care."""
    if found.machine.build.cuda is None or answer.cause.id in ("TORCH_MISSING", "TORCH_BROKEN"):
        return answer
    what = next((note for note in found.seen.notes if "did not answer" in note), "it did not answer in time")
    return _instead(answer, Cause("PROBE_FAILED", f"The NVIDIA driver hangs: {what}. Restart the machine."))


def _mps_ran(probe: Probe | None) -> bool:
    return probe is not None and any(one.device == "mps" and one.ok for one in probe.devices)


def _on_cpu(diagnosis: Diagnosis, machine: Machine) -> Diagnosis:
    """Asked for the CPU, only a torch that is missing or broken is in the way."""
    if diagnosis.cause.id in ("TORCH_MISSING", "TORCH_BROKEN"):
        return diagnosis
    others = tuple(cause for cause in (diagnosis.cause, *diagnosis.also) if cause.id not in ("OK", "NO_GPU"))
    text = f"torch {machine.build.version} computes on the CPU."
    return replace(diagnosis, verdict="native", exit_code=0, cause=Cause("OK", text), also=others, fixes=())


def _on_mps(diagnosis: Diagnosis, machine: Machine, probe: Probe | None) -> Diagnosis:
    """Apple's GPU, which the rules know nothing of: only the probe can tell."""
    if diagnosis.cause.id in ("TORCH_MISSING", "TORCH_BROKEN"):
        return diagnosis
    ran = [one for one in probe.devices if one.device == "mps"] if probe is not None else []
    if ran and ran[0].ok:
        text = f"torch {machine.build.version} runs on mps: real kernels ran."
        return replace(diagnosis, verdict="native", exit_code=0, cause=Cause("OK", text), also=(), fixes=())
    if ran:
        return _instead(diagnosis, Cause("PROBE_FAILED", f"A real kernel failed on mps: {ran[0].text}."))
    if machine.os == "macos" and machine.machine in ("aarch64", "arm64"):
        why = probe.text if probe is not None else "no kernel was tried"
        return _instead(diagnosis, Cause("PROBE_FAILED", f"Whether mps works is not known: {why}."))
    return _instead(
        diagnosis, Cause("NO_GPU", "mps is the GPU of Apple silicon, and this is no such computer.")
    )


def _on_cuda(
    judge: Callable[[Machine], Diagnosis], machine: Machine, probe: Probe | None, device: str
) -> Diagnosis:
    """Any GPU that works for ``cuda``; for ``cuda:N`` that one, in CUDA's numbering, or none."""
    whole = judge(machine)
    visible = hiding.numbered(machine.gpus, machine.env, machine.os)
    if device == "cuda":
        return judge(replace(machine, gpus=whole.usable)) if whole.usable else whole
    number = int(device.removeprefix("cuda:"))
    probed = {one.device: gpu for gpu, one in _matched(visible, probe)} if probe is not None else {}
    wanted = probed.get(device) or (visible[number] if number < len(visible) else None)
    if wanted is not None:
        return judge(replace(machine, gpus=(wanted,)))
    if not visible:
        return whole
    count = f"{len(visible)} GPU{'s are' if len(visible) > 1 else ' is'} visible, cuda:0"
    count += f" to cuda:{len(visible) - 1}" if len(visible) > 1 else ""
    if number < len(machine.gpus):
        return _instead(whole, Cause("HIDDEN_BY_ENV", f"{device} is hidden by the environment: {count}."))
    return _instead(whole, Cause("NO_GPU", f"There is no {device}: {count}."))


def _instead(diagnosis: Diagnosis, cause: Cause) -> Diagnosis:
    """Another cause before the one that the rules found."""
    others = tuple(other for other in (diagnosis.cause, *diagnosis.also) if other.id not in ("OK", cause.id))
    kind = "unknown" if cause.id == "PROBE_FAILED" else "none"
    return replace(
        diagnosis,
        verdict=kind,  # type: ignore[arg-type]
        exit_code=int(EXIT_OF[cause.id]),
        cause=cause,
        also=others,
        fixes=(),
    )
