"""A real kernel on every visible GPU, in a child process: what runs outranks what theory says.

A child, because asking CUDA anything spoils this process for forked workers, because a sick driver may hang
or crash it, and because the torch that is judged may belong to another Python.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ambidex.device.ask import Answer, ask

# A cold import of a CUDA build takes up to 20 s on a slow disk; PTX that must be compiled first takes longer.
LIMIT_SECONDS = 90.0
_CHILD = Path(__file__).with_name("kernels.py")


@dataclass(frozen=True)
class DeviceProbe:
    """What happened on one device. ``cause`` is an id of `fingerprints`, empty where all kernels ran."""

    device: str  # "cuda:0", in CUDA's numbering; "mps"
    ok: bool
    name: str = ""
    uuid: str = ""
    cc: tuple[int, int] | None = None
    seconds: float = 0.0  # of the kernels, the import not counted
    operation: str = ""  # the one that failed
    cause: str = ""
    text: str = ""  # what happened, in words

    def answers_to(self, wanted: str) -> bool:
        """Whether ``cuda``, ``cuda:1`` or ``mps`` means this device."""
        return wanted == self.device or wanted == self.device.split(":")[0]


@dataclass(frozen=True)
class Probe:
    """``ran`` is False where no child was started. ``cause`` and ``text`` say why no device was reached at
    all.
    """

    ran: bool = False
    devices: tuple[DeviceProbe, ...] = ()
    cause: str = ""
    text: str = ""
    torch: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether at least one device ran every kernel, and none failed."""
        return bool(self.devices) and all(device.ok for device in self.devices)


def run(
    executable: str = sys.executable,
    *,
    seconds: float = LIMIT_SECONDS,
    environ: Mapping[str, str] | None = None,
    child: Path = _CHILD,
    put: Callable[..., Answer] = ask,
) -> Probe:
    """Probe every GPU that ``executable``'s torch sees, within ``seconds`` in all.

    A device that crashes, hangs or poisons its process is noted, and a fresh child goes on with the next one.
    """
    began = time.monotonic()
    found = Probe(ran=True)
    while True:
        left = seconds - (time.monotonic() - began)
        command = [executable, str(child), str(len(found.devices))]
        answer = put(command, seconds=max(left, 0.1), environ=environ)
        found, more = _read(found, answer, stopped=answer.code is None, seconds=seconds)
        if not more or time.monotonic() - began >= seconds:
            return replace(found, seconds=round(time.monotonic() - began, 3))


def _events(text: str) -> Iterator[dict[str, Any]]:
    """The child's events; whatever else torch or a sitecustomize printed between them is passed over."""
    for line in text.splitlines():
        if line.startswith("ambidex-probe "):
            try:
                event = json.loads(line.removeprefix("ambidex-probe "))
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                yield event


def _read(found: Probe, answer: Answer, *, stopped: bool, seconds: float) -> tuple[Probe, bool]:
    """What one child adds, and whether devices are left that it did not reach."""
    devices = list(found.devices)
    already = len(devices)
    count: int | None = None
    opened: DeviceProbe | None = None
    for event in _events(answer.out):
        what = event["event"]
        if what == "torch":
            found = replace(found, torch=str(event.get("version", "")))
        elif what in ("import_failed", "init_failed"):
            return _nothing_reached(
                found, what, str(event.get("kind", "")), str(event.get("message", ""))
            ), False
        elif what == "count":
            count = int(event.get("count", 0))
        elif what == "device":
            opened = _opened(event)
        elif opened is not None and what == "op":
            opened = replace(opened, operation=str(event.get("op", "")))
        elif opened is not None and what == "ok":
            devices.append(replace(opened, ok=True, operation="", seconds=float(event.get("seconds", 0.0))))
            opened = None
        elif opened is not None and what == "failed":
            devices.append(_failed(opened, str(event.get("kind", "")), str(event.get("message", ""))))
            opened = None
    if opened is not None:  # it ended in the middle of a device
        devices.append(_ended(opened, answer, stopped=stopped, seconds=seconds))
    found = replace(found, devices=tuple(devices))
    if count is None:
        return _silent(found, answer, stopped=stopped, seconds=seconds), False
    if count == 0 and not devices:
        return replace(found, cause="no_device", text="torch sees no GPU"), False
    return found, already < len(devices) < count


def _opened(event: Mapping[str, Any]) -> DeviceProbe:
    cc = event.get("cc")
    pair = (int(cc[0]), int(cc[1])) if isinstance(cc, list) and len(cc) == 2 else None
    return DeviceProbe(
        str(event.get("device", "")),
        ok=False,
        name=str(event.get("name", "")),
        uuid=str(event.get("uuid", "")),
        cc=pair,
    )


def _failed(device: DeviceProbe, kind: str, message: str) -> DeviceProbe:
    if kind == "WrongResult":
        return replace(device, cause="wrong_result", text=f"{device.operation}: {message}")
    cause = _cause_of(message)
    words = f'{device.operation} failed: "{_first_line(message) or kind}"'
    return replace(device, cause=cause or "failed", text=words)


def _ended(device: DeviceProbe, answer: Answer, *, stopped: bool, seconds: float) -> DeviceProbe:
    where = device.operation or "opening the device"
    if stopped:
        return replace(device, cause="timeout", text=f"{where} did not end within {seconds:g} s")
    return replace(device, cause="crashed", text=f"the process died in {where} ({_end(answer)})")


def _nothing_reached(found: Probe, what: str, kind: str, message: str) -> Probe:
    cause = _cause_of(message)
    if what == "import_failed":
        return replace(
            found, cause="import_failed", text=f'import torch failed: {kind}: "{_first_line(message)}"'
        )
    return replace(found, cause=cause or "failed", text=f'CUDA could not start: "{_first_line(message)}"')


def _silent(found: Probe, answer: Answer, *, stopped: bool, seconds: float) -> Probe:
    """The child ended before it had counted the GPUs."""
    stage = "starting CUDA" if found.torch else "importing torch"
    if stopped and "did not answer" in answer.trouble:
        return replace(found, cause="timeout", text=f"{stage} did not end within {seconds:g} s")
    if stopped:
        return replace(found, ran=False, cause="not_started", text=answer.trouble)
    cause = _cause_of(answer.err)
    last = answer.err.strip().splitlines()[-1:] or [""]
    return replace(
        found,
        cause=cause or "crashed",
        text=f"the process died while {stage} ({_end(answer)}) {last[0]}".strip(),
    )


def _end(answer: Answer) -> str:
    return answer.trouble or "it ended early"


def _cause_of(message: str) -> str:
    from ambidex.device import fingerprints  # only a failure needs them

    return fingerprints.cause_of(message)


def _first_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[0][:300] if lines else ""
