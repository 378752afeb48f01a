"""The device policy: which device a run computes on, and why, in words.

``auto`` trusts a GPU only after real kernels ran on it in a child process, and goes on on the CPU, saying the
cause, where none did. A device asked for by name is had or refused; it is never swapped for another.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ambidex.device import hiding
from ambidex.device import probe as probing
from ambidex.device.asked import origin_words, understood
from ambidex.device.doctor import judged
from ambidex.device.facts import Facts, look, may_have_gpu, this_os
from ambidex.device.probe import DeviceProbe, Probe
from ambidex.errors import Problem, Problems

_ASKED_BY = {
    "flag": "--device cpu",
    "argument": 'the argument device="cpu"',
    "toml": 'device = "cpu" in the TOML file',
    "environment": "AMBIDEX_DEVICE=cpu",
}
_NOT_ASKED = ("flag", "argument", "toml", "environment")


@dataclass(frozen=True)
class Choice:
    """Where a run computes. ``reason`` goes onto `train`'s first line and into card.json."""

    name: str  # "cpu", "cuda:0", "mps"
    reason: str
    forced_by: tuple[str, ...] = ()  # every way in force that forces the CPU, told apart
    decided_by: str = ""  # the one of them that decided
    notices: tuple[str, ...] = ()  # what the user should know besides


@dataclass(frozen=True)
class _Ways:
    """What in this process forces the CPU, in the order in which it decides, and what is odd about it."""

    by_request: tuple[str, ...] = ()
    by_environment: tuple[str, ...] = ()
    by_code: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    @property
    def hidden(self) -> tuple[str, ...]:
        return self.by_environment + self.by_code

    @property
    def all(self) -> tuple[str, ...]:
        return self.by_request + self.hidden


def choose(
    requested: str = "auto",
    origin: str = "default",
    *,
    asked: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    modules: Mapping[str, ModuleType] | None = None,
    os_name: str | None = None,
    see: Callable[[], Facts] = look,
    run_probe: Callable[[], Probe] = probing.run,
) -> Choice:
    """The device for a run, or `Problems` with the doctor's strict exit code and text.

    ``requested`` is auto, cpu, cuda, cuda:N or mps; ``origin`` says where that came from: default, flag,
    argument, toml or environment. ``asked`` holds what every origin asked for, the ones that were overruled
    too, so that all the ways that force the CPU can be named. The rest lets a test put a machine together.
    """
    environ = os.environ if environ is None else environ
    modules = sys.modules if modules is None else modules
    os_name = os_name or this_os()
    wanted = understood(requested, origin)
    ways = _ways({**(asked or {}), origin: wanted}, environ, modules, os_name)
    if wanted == "cpu":
        return _forced(ways.all, _ASKED_BY.get(origin, "the default"), ways.notices)
    if wanted == "auto" and ways.hidden:
        # What asked for the CPU and was overruled by this auto is not in force.
        return _forced(ways.hidden, ways.hidden[0], ways.notices)
    if wanted == "auto":
        return _automatic(see, run_probe, ways.notices)
    return _named(wanted, origin, ways, see, run_probe)


def forced_to_cpu(
    environ: Mapping[str, str] | None = None, modules: Mapping[str, ModuleType] | None = None
) -> tuple[str, ...]:
    """The ways, of those that need no flag or file, that force the CPU in this process now."""
    ways = _ways(
        {},
        os.environ if environ is None else environ,
        sys.modules if modules is None else modules,
        this_os(),
    )
    return ways.all


def _ways(
    asked: Mapping[str, str], environ: Mapping[str, str], modules: Mapping[str, ModuleType], os_name: str
) -> _Ways:
    values = {origin: value.strip().lower() for origin, value in asked.items()}
    values.setdefault("environment", environ.get("AMBIDEX_DEVICE", "").strip().lower())
    by_request = tuple(_ASKED_BY[origin] for origin in _NOT_ASKED if values.get(origin) == "cpu")
    notices: list[str] = []

    by_environment: tuple[str, ...] = ()
    mask = hiding.cuda_mask(environ, os_name)
    if mask.hides_all:
        by_environment = (f'CUDA_VISIBLE_DEVICES="{mask.text}" in the environment',)
        if _cuda_has_started(modules):
            notices.append(
                "CUDA had started in this process before CUDA_VISIBLE_DEVICES was set: the variable hides "
                "nothing "
                "from code that asks for CUDA by itself; this run computes on the CPU all the same"
            )
    elif os_name == "windows" and mask.text == "":
        notices.append(
            "on Windows an empty CUDA_VISIBLE_DEVICES counts as unset; CUDA_VISIBLE_DEVICES=-1 hides the GPUs"
        )

    answer = _overridden_is_available(modules)
    by_code = ("torch.cuda.is_available overridden in code",) if answer is False else ()
    if answer is True:
        notices.append(
            "torch.cuda.is_available is overridden in code and says True: real kernels decide, not it"
        )
    return _Ways(by_request, by_environment, by_code, tuple(notices))


def _overridden_is_available(modules: Mapping[str, ModuleType]) -> bool | None:
    """What an overridden ``torch.cuda.is_available`` says, None where it is torch's own or torch is not
    imported.

    A wrapper may carry torch's name, so the file that the code was written in decides.
    """
    cuda: Any = modules.get("torch.cuda") or getattr(modules.get("torch"), "cuda", None)
    function = getattr(cuda, "is_available", None)
    if function is None:
        return None
    home = getattr(cuda, "__file__", None)
    code = getattr(function, "__code__", None)
    if code is not None and home is not None and Path(code.co_filename) == Path(home):
        return None
    try:
        return bool(function())
    except Exception:  # the user's own code: whatever it raises, it does not say yes
        return False


def _cuda_has_started(modules: Mapping[str, ModuleType]) -> bool:
    return bool(getattr(modules.get("torch.cuda"), "_initialized", False))


def _forced(in_force: tuple[str, ...], decided: str, notices: tuple[str, ...]) -> Choice:
    rest = [way for way in in_force if way != decided]
    reason = f"forced by {decided}" + (f"; also in force: {_and(rest)}" if rest else "")
    return Choice("cpu", reason, in_force, decided, notices)


def _automatic(see: Callable[[], Facts], run_probe: Callable[[], Probe], notices: tuple[str, ...]) -> Choice:
    facts = see()
    build = facts.machine.build
    if not may_have_gpu(facts):
        sentence = judged(facts).sentence
        if build.version and build.cuda is None and build.hip is None and "CPU build" not in sentence:
            sentence = f"torch {build.version} is a CPU build. {sentence}"
        return Choice("cpu", sentence, decided_by="auto", notices=notices)
    found = run_probe()
    working = [device for device in found.devices if device.ok]
    if working:
        return _taken(working[0], facts, found, "auto", notices)
    return Choice("cpu", judged(facts, probe=found).sentence, decided_by="auto", notices=notices)


def _named(
    wanted: str, origin: str, ways: _Ways, see: Callable[[], Facts], run_probe: Callable[[], Probe]
) -> Choice:
    facts = see()
    found = None if ways.hidden or not may_have_gpu(facts) else run_probe()
    for device in found.devices if found is not None else ():
        if device.ok and device.answers_to(wanted):
            assert found is not None
            return _taken(device, facts, found, wanted, ways.notices)
    verdict = judged(facts, probe=found, device=wanted, strict=True)
    what = f"{wanted} was asked for by {origin_words(origin)} and cannot be had"
    if ways.hidden:
        what += f"; every GPU is hidden: {_and(ways.hidden)}"
    # The doctor may find nothing wrong where only code in this process hides the GPU.
    code = verdict.exit_code or (23 if ways.hidden else 30)
    text = verdict.text if verdict.exit_code else ""
    fix = (
        "take that away, or train on the CPU: --device cpu"
        if ways.hidden
        else "train on the CPU: --device cpu"
    )
    raise Problems(Problem(f"{what}\n{text}".rstrip(), fix=fix), code)


def _taken(
    device: DeviceProbe, facts: Facts, found: Probe, decided_by: str, notices: tuple[str, ...]
) -> Choice:
    build = facts.machine.build
    reason = f"{device.name or device.device}: kernels of torch {build.version} ran on it"
    passed_over = [other for other in found.devices if not other.ok]
    extra: tuple[str, ...] = ()
    if passed_over:
        words = "; ".join(f"{other.device} ({other.name}): {other.text}" for other in passed_over)
        reason += f"; not usable: {words}"
        if device.uuid:
            extra = (f"to hide the other GPUs from every program: CUDA_VISIBLE_DEVICES={device.uuid}",)
    return Choice(device.device, reason, (), decided_by, notices + extra)


def _and(words: tuple[str, ...] | list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
