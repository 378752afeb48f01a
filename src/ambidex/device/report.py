"""What the doctor found, as text for people, as JSON by the schema, and as a block to paste into a forum."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ambidex.device import builds, cpu
from ambidex.device.commands import in_a_terminal
from ambidex.device.covers import listed, made_for, sm
from ambidex.device.diagnosis import Cause, Diagnosis, Fix, GpuVerdict
from ambidex.device.facts import Facts
from ambidex.device.fixes import driver_os
from ambidex.device.image import Image
from ambidex.device.layout import laid_out
from ambidex.device.machine import Build, Machine
from ambidex.device.probe import Probe

if TYPE_CHECKING:
    from ambidex.device.extensions import Scan

SCHEMA = 1


@dataclass(frozen=True)
class Report:
    """One examination. ``supposed`` says that the machine was described, not looked at."""

    facts: Facts
    diagnosis: Diagnosis
    probe: Probe | None = None
    scan: Scan | None = None
    device: str = "auto"
    supposed: bool = False
    image: Image | None = None

    @property
    def exit_code(self) -> int:
        return self.diagnosis.exit_code

    @property
    def machine(self) -> Machine:
        return self.facts.machine

    def __str__(self) -> str:
        return self.text()

    def answer(self, *, colour: bool = False, width: int = 0) -> str:
        """The cause, the reason and the ways out: what a user needs first."""
        mood = "good" if self.diagnosis.cause.id == "OK" else "bad"
        return laid_out(self._answer(), colour, width, mood)

    def text(self, *, colour: bool = False, width: int = 0) -> str:
        """The answer, and below it everything that it rests on."""
        below = [*self._evidence(), *(() if self.supposed else self._processor()), *self._limits()]
        return f"{self.answer(colour=colour, width=width)}\n\n{laid_out(below, colour, width)}"

    def json(self) -> str:
        """Schema 1, on one page."""
        return json.dumps(self.data(), indent=2)

    def paste(self) -> str:
        """The text for a forum or an issue, without paths, user names and ids."""
        return "```text\n" + anonymous(self.text(), _private(self.facts)) + "\n```"

    def data(self) -> dict[str, Any]:
        """The report by schema 1, as plain data."""
        build, container = self.machine.build, self.machine.container
        found = self.diagnosis
        return {
            "schema": SCHEMA,
            "table_date": found.table_date,
            "verdict": found.verdict,
            "exit_code": found.exit_code,
            "cause": _cause(found.cause),
            "torch": {
                "version": build.version,
                "cuda": build.cuda,
                "path": build.path,
                "python": build.python or self.machine.python,
                "archs": None if build.archs is None else [str(arch) for arch in build.archs],
            },
            "driver": {"version": self.machine.driver.version, "cuda": _dotted(_spoken(self.machine))},
            "gpus": [
                {
                    "name": one.gpu.name,
                    "cc": _dotted(one.gpu.cc),
                    "visible": one.gpu.visible,
                    "verdict": one.verdict.kind,
                    "covered_by": one.verdict.covered_by or None,
                }
                for one in found.gpus
            ],
            "container": {
                "kind": container.kind,
                "gpu_passed": container.gpu_passed,
                "detail": container.detail,
                "image": self.image.variant if self.image else None,
            }
            if container.kind
            else None,
            "env": dict(self.machine.env),
            "cpu": {
                "quota": self.machine.cpu.quota,
                "affinity": self.machine.cpu.affinity,
                "threads": self.facts.threads_advised,
                "isa": list(self.machine.cpu.isa),
            },
            "extensions": None if self.scan is None else [_extension(one) for one in self.scan.extensions],
            "probe": _probe(self.probe),
            "fixes": [fix.data() for fix in found.fixes],
            "also": [_cause(cause) for cause in found.also],
            "not_checked": [*found.not_checked, *self.facts.notes],
        }

    def _answer(self) -> Iterator[tuple[str, str]]:
        found = self.diagnosis
        yield self._heading(), found.cause.text
        yield "Why", found.cause.why
        for number, fix in enumerate(found.fixes):
            yield ("Fix" if number == 0 else "Or"), _fix(fix, self.machine.os)
        if found.gpus and found.cpu_now and found.cause.id not in ("OK", "EXTENSION_ARCH"):
            yield ("Or" if found.fixes else "Fix"), f"train on the CPU now: {found.cpu_now}"

    def _heading(self) -> str:
        """``GPU 0`` where one GPU is what the cause is about, else ``GPU``, ``Torch`` or ``OK``."""
        cause, gpus = self.diagnosis.cause.id, self.diagnosis.gpus
        if cause == "OK":
            return "OK"
        if cause.startswith("TORCH") or cause == "UNKNOWN_BUILD":
            return "Torch"
        return f"GPU {gpus[0].gpu.index}" if len(gpus) == 1 else "GPU"

    def _evidence(self) -> Iterator[tuple[str, str]]:
        machine, found = self.machine, self.diagnosis
        if not machine.build.missing:
            yield "Torch", _torch(machine.build, machine.python)
        yield "Driver", _driver(machine)
        for one in found.gpus:
            yield f"GPU {one.gpu.index}", _gpu(one)
        if machine.container.kind:
            yield "Inside", f"{machine.container.kind}: {machine.container.detail}"
        if self.image is not None:
            yield "Image", self.image.introduction()
        yield "Env", ", ".join(f"{name}={value!r}" for name, value in machine.env.items())
        if self.scan is not None:
            yield "Beside", _beside(self.scan)
        if self.probe is not None:
            yield "Probe", _probe_words(self.probe)
        for cause in found.also:
            yield "Also", cause.text

    def _processor(self) -> Iterator[tuple[str, str]]:
        facts, processor = self.facts, self.machine.cpu
        quota = "no quota" if processor.quota is None else f"a quota of {processor.quota:g} CPUs"
        yield (
            "CPU",
            f"{processor.name or 'processor'}: {_count(processor.cores, 'physical core')} and "
            f"{_count(processor.affinity, 'logical one')} for this process, {quota}",
        )
        wanted, default = facts.threads_advised, facts.threads_default
        if default == wanted:
            yield "", f"threads: torch takes {default} by itself, which is right"
        else:
            yield (
                "",
                f"threads: torch would take {default}; OMP_NUM_THREADS={wanted} is right (`ambidex train` "
                f"does it)",
            )
        fast = cpu.has_fast_bf16(processor.isa)
        worth = "bf16 is worth it" if fast else "bf16 is not worth it here, fp32 is as fast"
        yield "", f"instruction set: {', '.join(processor.isa) or 'not known'}; {worth}"
        compiler = facts.compiler or "none, so torch.compile cannot be used on the CPU"
        yield "", f"compiler: {compiler}"

    def _limits(self) -> Iterator[tuple[str, str]]:
        for note in self.facts.notes:
            if note not in self.diagnosis.cause.why:
                yield "Note", note
        yield "Table", f"as of {self.diagnosis.table_date}"
        yield "Not checked", "; ".join(self.diagnosis.not_checked)


def for_people(report: Report, stream: TextIO) -> str:
    """The text as wide as the terminal, coloured where it is one and NO_COLOR is not set."""
    if not stream.isatty():
        return report.text()
    import shutil

    colour = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    width = shutil.get_terminal_size((110, 24)).columns
    return report.text(colour=colour, width=max(60, min(width, 120)))


def anonymous(text: str, private: Iterable[str] = ()) -> str:
    """The text without paths, user names, addresses of machines and ids of GPUs."""
    for word in sorted({word for word in private if len(word) > 2}, key=len, reverse=True):
        text = re.sub(
            rf"(?<![\w./\\-]){re.escape(word)}[\w./\\+-]*" if _is_path(word) else rf"\b{re.escape(word)}\b",
            "<path>" if _is_path(word) else "<user>",
            text,
        )
    text = re.sub(r"\b(GPU|MIG)-[0-9a-fA-F][0-9a-fA-F-]{7,}(/\d+)*", r"\1-<id>", text)
    text = re.sub(r"(?<![\w])[A-Za-z]:\\[^\s'\";,)]+", "<path>", text)
    text = re.sub(r"\\\\[\w.$-]+\\[^\s'\";,)]+", "<path>", text)
    return re.sub(r"(?<![\w:/.<>~-])~?/(?!dev/)[\w.+@-]+(?:/[\w.+@ -]*[\w.+@-])+/?", "<path>", text)


def _is_path(word: str) -> bool:
    return "/" in word or "\\" in word


def _private(facts: Facts) -> Iterator[str]:
    """Words of this machine that name a person or a place."""
    home = str(Path.home()) if os.environ.get("HOME") or os.name == "nt" else ""
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER")}
    names |= {re.split(r"[/\\]", home)[-1]} if home else set()
    yield from (name for name in names if name.lower() not in ("root", "user", "admin", ""))
    yield from (
        path for path in (home, str(facts.environment.prefix), facts.environment.executable) if _is_path(path)
    )
    yield from (str(place) for place in facts.environment.places if place.is_absolute())
    if facts.machine.build.path:
        yield facts.machine.build.path


def _fix(fix: Fix, os: str) -> str:
    """The command on a line of its own, and why; what has to be done by hand before it stands before it."""
    if not fix.commands:
        return fix.why
    typed = in_a_terminal(fix.commands, os)
    return f"{fix.why}\n{typed}" if "driver" in fix.requires else f"{typed}\n{fix.why}"


def _torch(build: Build, python: str) -> str:
    how = {"scanned": "read from its library", "table": "by the table"}.get(build.source, "not known")
    if build.archs is None:
        code = "its list of GPU code is not known" if build.cuda else ""
    elif build.archs:
        code = f"code for {listed(build.archs)} ({how})"
    else:
        code = made_for(build)
    where = f"in {build.path}" if build.path else ""
    parts = [build.version or "version not known"]
    parts += [f"CUDA {build.cuda}" if build.cuda else "", code, f"Python {build.python or python}", where]
    return ", ".join(part for part in parts if part)


def _driver(machine: Machine) -> str:
    driver = machine.driver
    if driver.version is None and driver.cuda is None:
        return "none found" if not machine.gpus else "not known"
    cuda = _spoken(machine)
    spoken = f", speaks CUDA up to {_dotted(cuda)}" if cuda else ""
    return f"{driver.version or 'version not known'}{spoken}"


def _spoken(machine: Machine) -> tuple[int, int] | None:
    """The newest CUDA that the driver speaks: by its own word, else by NVIDIA's table."""
    return builds.driver_cuda(machine.driver, driver_os(machine))


def _gpu(one: GpuVerdict) -> str:
    cc = f"{sm(one.gpu.cc)}" if one.gpu.cc else "capability not known"
    memory = f", {one.gpu.memory_bytes / 2**30:.0f} GiB" if one.gpu.memory_bytes else ""
    hidden = "" if one.gpu.visible else ", hidden by the environment"
    ran = {True: "; kernels ran", False: "; a kernel failed", None: ""}[one.ran]
    return f"{one.gpu.name}, {cc}{memory}{hidden}: {one.verdict.kind}, {one.verdict.reason}{ran}"


def _beside(scan: Scan) -> str:
    if not scan.extensions:
        return f"none of {_count(scan.libraries, 'other library', 'other libraries')} carries GPU code"
    return "; ".join(f"{one.name} has {listed(one.archs)}" for one in scan.extensions)


def _probe_words(probe: Probe) -> str:
    said = [f"{one.device} {one.name}: {'all kernels ran' if one.ok else one.text}" for one in probe.devices]
    return "; ".join(said) or probe.text


def _cause(cause: Cause) -> dict[str, str]:
    return {"id": cause.id, "text": f"{cause.text} {cause.why}".strip()}


def _extension(one: Any) -> dict[str, Any]:
    return {"name": one.name, "archs": [str(arch) for arch in one.archs], "path": one.path}


def _probe(probe: Probe | None) -> dict[str, Any] | None:
    if probe is None:
        return None
    devices = [
        {
            "device": one.device,
            "name": one.name,
            "ok": one.ok,
            "cause": one.cause,
            "text": one.text,
            "seconds": one.seconds,
        }
        for one in probe.devices
    ]
    return {
        "ok": probe.ok,
        "cause": probe.cause,
        "text": probe.text,
        "seconds": probe.seconds,
        "devices": devices,
    }


def _dotted(pair: tuple[int, int] | None) -> str | None:
    return f"{pair[0]}.{pair[1]}" if pair else None


def _count(number: int, word: str, many: str = "") -> str:
    return f"{number} {word if number == 1 else many or word + 's'}"
