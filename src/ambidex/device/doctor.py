"""The doctor: look, judge, and answer whether this build will run on this machine, why, and what to type.

From theory in well under a second, without importing torch; then, where a GPU is visible, by real kernels in
a child process. `from ambidex import doctor, gpu_usable` is for other projects.
"""

from __future__ import annotations

import os as system
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ambidex.device import extensions, facts, fingerprints, hiding, rules, whatif
from ambidex.device import probe as probing
from ambidex.device.diagnosis import EXIT_OF, Cause, Diagnosis
from ambidex.device.extensions import Scan
from ambidex.device.facts import Facts, may_have_gpu
from ambidex.device.gpus_seen import Seen
from ambidex.device.machine import Gpu, Machine, Tried
from ambidex.device.probe import Probe
from ambidex.device.report import Report


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
    see: Callable[..., Facts] = facts.look,
    run_probe: Callable[..., Probe] = probing.run,
) -> Report:
    """The report on this machine, or, where any of ``torch`` to ``machine`` is given, on the supposed one.

    ``device`` is auto, cpu, cuda, cuda:N or mps; one asked for by name is judged strictly. ``probe`` False
    keeps to theory. Raises `Problems` (exit 2) where an argument cannot be understood.
    """
    device = understood(device)
    supposed = any(word is not None for word in (torch, gpu, driver, python, os, machine))
    if gpu is None:
        found = see(python_env)
    else:
        found = see(python_env, look_at_gpus=lambda *_: Seen())
    if supposed:
        imagined = whatif.machine_from(
            torch=torch, gpu=gpu, driver=driver, python=python, os=os, machine=machine, here=found.machine
        )
        found = replace(found, machine=imagined, notes=())
    scan = _scanned(found) if torch is None else None
    tried = None
    if probe and not supposed and not found.seen.hangs and device != "cpu" and may_have_gpu(found):
        tried = run_probe(found.environment.executable if not found.environment.own else facts.sys.executable)
    return Report(
        facts=found,
        diagnosis=diagnose(found, scan=scan, probe=tried, device=device, strict=strict),
        probe=tried,
        scan=scan,
        device=device,
        supposed=supposed,
    )


def gpu_usable(device: str = "cuda", *, probe: bool = False) -> bool:
    """Whether the installed torch runs on a GPU here (on that one, for ``cuda:1``). Imports no torch.

    From theory by default, in a fraction of a second; with ``probe`` by real kernels in a child process.
    """
    return doctor(device=device, probe=probe, strict=True).exit_code == 0


def judged(found: Facts, *, probe: Probe | None = None, device: str = "auto", strict: bool = False) -> Judged:
    """The doctor's word on facts that somebody else has gathered: what `choose` says when a GPU cannot be
    had.
    """
    diagnosis = diagnose(found, probe=probe, device=device, strict=strict)
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
    """Facts judged by the rules, with what the probe and the extension scan add, for the device asked about."""
    machine, tried = _with_probe(found, probe)
    strict = strict or device not in ("auto", "cpu")

    def judge(one: Machine) -> Diagnosis:
        answer = rules.judge(
            one, extensions=None if scan is None else scan.extensions, probe=tried, strict=strict
        )
        hangs = ("the GPU was not probed: its driver does not answer",) if found.seen.hangs else ()
        return replace(answer, not_checked=(*answer.not_checked, *hangs, *(scan.notes if scan else ())))

    if device == "cpu":
        return _on_cpu(judge(machine), machine)
    if device == "mps":
        return _on_mps(judge(machine), machine, probe)
    if device == "auto":
        return judge(machine)
    return _on_cuda(judge, machine, probe, device)


def understood(device: str) -> str:
    """The device asked about, in its one spelling. Raises `Problems` for a word that is none."""
    from ambidex.device.choose import understood as spelled

    return spelled(device, "flag")


def _scanned(found: Facts) -> Scan | None:
    """The extensions beside torch; None where no GPU or no torch makes them worth a look."""
    machine = found.machine
    if not machine.gpus or machine.build.missing or machine.build.cuda is None:
        return None
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
        return replace(machine, build=replace(machine.build, broken=probe.text)), None
    if not machine.gpus:
        seen = tuple(
            Gpu(one.name, None if machine.build.hip else one.cc, number, one.uuid)
            for number, one in enumerate(probe.devices)
        )
        machine = replace(machine, gpus=seen)
    visible = [gpu for gpu in machine.gpus if gpu.visible]
    if not probe.devices:
        return machine, [Tried(gpu.index, False, _cause_id(probe.cause), probe.text) for gpu in visible]
    pairs = _matched(visible, probe, machine)
    return machine, [
        Tried(gpu.index, one.ok, "" if one.ok else _cause_id(one.cause), one.text) for gpu, one in pairs
    ]


def _matched(gpus: list[Gpu], probe: Probe, machine: Machine) -> list[tuple[Gpu, probing.DeviceProbe]]:
    """Each probed device with its GPU: by UUID, which both sides know, else in CUDA's order."""
    by_uuid = {gpu.uuid: gpu for gpu in gpus if gpu.uuid}
    left = [gpu for gpu in hiding.in_cuda_order(gpus, machine.env)]
    pairs = []
    for one in probe.devices:
        gpu = (
            by_uuid.get(one.uuid)
            or next((gpu for gpu in left if gpu.name == one.name), None)
            or next(iter(left), None)
        )
        if gpu is None:
            break
        if gpu in left:
            left.remove(gpu)
        pairs.append((gpu, one))
    return pairs


def _cause_id(fingerprint: str) -> str:
    known = {one.id: one.doctor for one in fingerprints.KNOWN}
    return known.get(fingerprint, "") or "PROBE_FAILED"


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
    visible = [gpu for gpu in hiding.in_cuda_order(machine.gpus, machine.env) if gpu.visible]
    if device == "cuda":
        return judge(replace(machine, gpus=whole.usable)) if whole.usable else whole
    number = int(device.removeprefix("cuda:"))
    probed = {one.device: gpu for gpu, one in _matched(visible, probe, machine)} if probe is not None else {}
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
