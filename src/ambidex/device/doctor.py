"""The doctor. (First words of it: what `choose` needs; the report follows.)"""

from __future__ import annotations

from dataclasses import dataclass

from ambidex.device.facts import Facts
from ambidex.device.probe import Probe


@dataclass(frozen=True)
class Judged:
    """One answer: an exit code, the sentence for one line, and the whole text."""

    exit_code: int
    cause: str
    sentence: str
    text: str


def judged(facts: Facts, *, probe: Probe | None = None, device: str = "auto", strict: bool = False) -> Judged:
    """Whether ``device`` can be had, and if not why. (Rough until the rules are merged.)"""
    build = facts.machine.build
    if build.missing or build.broken:
        return Judged(24, "TORCH_BROKEN", build.missing or build.broken, build.missing or build.broken)
    if probe is not None and not probe.ok:
        words = "; ".join(
            [probe.text, *(f"{one.device}: {one.text}" for one in probe.devices if not one.ok)]
        ).strip("; ")
        return Judged(30, "PROBE_FAILED", words, words)
    gpus = ", ".join(gpu.name for gpu in facts.machine.gpus)
    if build.cuda is None and build.hip is None:
        words = f"torch {build.version} is a CPU build" + (
            f"; {gpus} is not used" if gpus else ", and no GPU was found"
        )
        return Judged(10 if strict else 0, "CPU_BUILD" if gpus else "NO_GPU", words, words)
    return Judged(10 if strict else 0, "NO_GPU", "no GPU was found", "no GPU was found")
