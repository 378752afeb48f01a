"""GPUs and driver by NVML, NVIDIA's management library, through ctypes: no torch, no CUDA context.

NVML lists every GPU whatever CUDA_VISIBLE_DEVICES says, in the order of the PCI bus. On a sick driver a call
may fail anywhere, or never return; so each is asked for in a thread that nobody waits for longer than a
limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

from ambidex.device.machine import Driver, Gpu

_NAMES = {
    "win32": ("nvml.dll", r"C:\Program Files\NVIDIA Corporation\NVSMI\nvml.dll"),
    "linux": ("libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"),
}
# nvml.h's return codes, those that a machine's state can bring about.
_ERRORS = {
    3: "not supported",
    4: "no permission",
    6: "not found",
    9: "the driver is not loaded",
    10: "time-out",
    12: "its library is incomplete",
    13: "it lacks a function",
    15: "the GPU has fallen off the bus",
    16: "the GPU needs a reset",
    17: "the operating system has blocked the request",
    18: "driver and library are of different versions: restart the machine",
    19: "in use",
    999: "unknown error",
}


class _CallError(Exception):
    """One NVML call that did not succeed, in words."""


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def seen(
    *, load: Callable[[str], Any] = ctypes.CDLL, names: Sequence[str] | None = None, seconds: float = 3.0
) -> tuple[tuple[Gpu, ...], Driver, tuple[str, ...], bool]:
    """GPUs, driver, what went wrong in words, and whether NVML answered at all.

    A GPU of which only part could be read is kept with that part.
    """
    result: list[tuple[tuple[Gpu, ...], Driver, tuple[str, ...], bool]] = []

    def work() -> None:
        result.append(_ask(load, _NAMES.get(sys.platform, _NAMES["linux"]) if names is None else names))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if result:
        return result[0]
    return (), Driver(), (f"NVML did not answer within {seconds:g} s: the driver hangs",), False


def _ask(
    load: Callable[[str], Any], names: Sequence[str]
) -> tuple[tuple[Gpu, ...], Driver, tuple[str, ...], bool]:
    library = _loaded(load, names)
    if library is None:
        return (), Driver(), (), False
    try:
        _call(library, "nvmlInit_v2")
    except _CallError as failed:
        return (), Driver(), (f"NVML did not start: {failed}",), False
    notes: list[str] = []
    try:
        driver = Driver(_driver_version(library, notes), _driver_cuda(library, notes))
        gpus = _gpus(library, notes)
    finally:
        with contextlib.suppress(_CallError):
            _call(library, "nvmlShutdown")
    return gpus, driver, tuple(notes), True


def _loaded(load: Callable[[str], Any], names: Sequence[str]) -> Any | None:
    for name in names:
        try:
            return load(name)
        except OSError:
            continue
    return None


def _call(library: Any, function: str, *arguments: Any) -> None:
    try:
        code = getattr(library, function)(*arguments)
    except AttributeError:
        raise _CallError(f"{function} is not in this driver's library") from None
    except (OSError, ValueError, ctypes.ArgumentError) as error:
        raise _CallError(f"{function}: {error}") from None
    if code != 0:
        raise _CallError(f"{function}: {_ERRORS.get(code, f'error {code}')}")


def _string(library: Any, function: str, *arguments: Any) -> str:
    buffer = ctypes.create_string_buffer(128)
    _call(library, function, *arguments, buffer, ctypes.c_uint(len(buffer)))
    return buffer.value.decode("utf-8", "replace").strip()


def _driver_version(library: Any, notes: list[str]) -> str | None:
    try:
        return _string(library, "nvmlSystemGetDriverVersion") or None
    except _CallError as failed:
        notes.append(f"NVML could not name the driver: {failed}")
        return None


def _driver_cuda(library: Any, notes: list[str]) -> tuple[int, int] | None:
    """The newest CUDA that the driver speaks: NVML gives 12080 for 12.8."""
    number = ctypes.c_int(0)
    try:
        _call(library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(number))
    except _CallError as failed:
        notes.append(f"NVML could not name the driver's CUDA: {failed}")
        return None
    return (number.value // 1000, number.value % 1000 // 10) if number.value >= 1000 else None


def _gpus(library: Any, notes: list[str]) -> tuple[Gpu, ...]:
    count = ctypes.c_uint(0)
    try:
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    except _CallError as failed:
        notes.append(f"NVML could not count the GPUs: {failed}")
        return ()
    gpus = []
    for index in range(min(count.value, 256)):
        handle = ctypes.c_void_p()
        try:
            _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        except _CallError as failed:
            notes.append(f"NVML could not open GPU {index}: {failed}")
            continue
        gpus.append(_gpu(library, index, handle, notes))
    return tuple(gpus)


def _gpu(library: Any, index: int, handle: Any, notes: list[str]) -> Gpu:
    name, uuid, cc, memory_bytes = "", "", None, None
    major, minor, memory = ctypes.c_int(0), ctypes.c_int(0), _Memory()
    try:
        name = _string(library, "nvmlDeviceGetName", handle)
        _call(
            library,
            "nvmlDeviceGetCudaComputeCapability",
            handle,
            ctypes.byref(major),
            ctypes.byref(minor),
        )
        cc = (major.value, minor.value)
        uuid = _string(library, "nvmlDeviceGetUUID", handle)
        _call(library, "nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        memory_bytes = int(memory.total)
    except _CallError as failed:
        # Memory is only worth a line where it is asked for: integrated GPUs have none of their own.
        if cc is None or not uuid:
            notes.append(f"NVML told only part of GPU {index}: {failed}")
    return Gpu(name or f"GPU {index}", cc, index, uuid, memory_bytes)
