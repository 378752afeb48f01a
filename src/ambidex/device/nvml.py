"""GPUs and driver by NVML, NVIDIA's management library, through ctypes: no torch, no CUDA context.

NVML lists every GPU whatever CUDA_VISIBLE_DEVICES says, in the order of the PCI bus. On a sick driver a call
may fail anywhere, never return, or take its process with it; so `gpus_seen` runs this file in a child process
with a time limit. It imports nothing but the standard library, and prints what it learned as one line of
JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

NAMES = {
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


def loaded(load: Callable[[str], Any] = ctypes.CDLL, names: Sequence[str] | None = None) -> Any | None:
    """The library, None where this machine has none."""
    for name in NAMES.get(sys.platform, ()) if names is None else names:
        with contextlib.suppress(OSError):
            return load(name)
    return None


def read(library: Any) -> dict[str, Any]:
    """``gpus``, ``driver``, ``cuda``, and ``notes``: what failed, in words. What could be read of a GPU is
    kept.
    """
    try:
        _call(library, "nvmlInit_v2")
    except _CallError as failed:
        return {"gpus": [], "driver": None, "cuda": None, "notes": [f"NVML did not start: {failed}"]}
    notes: list[str] = []
    driver, cuda = _driver_version(library, notes), _driver_cuda(library, notes)
    gpus = _gpus(library, notes)
    with contextlib.suppress(_CallError):
        _call(library, "nvmlShutdown")
    return {"gpus": gpus, "driver": driver, "cuda": cuda, "notes": notes}


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


def _gpus(library: Any, notes: list[str]) -> list[dict[str, Any]]:
    count = ctypes.c_uint(0)
    try:
        _call(library, "nvmlDeviceGetCount_v2", ctypes.byref(count))
    except _CallError as failed:
        notes.append(f"NVML could not count the GPUs: {failed}")
        return []
    gpus = []
    for index in range(min(count.value, 256)):
        handle = ctypes.c_void_p()
        try:
            _call(library, "nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        except _CallError as failed:
            notes.append(f"NVML could not open GPU {index}: {failed}")
            continue
        gpus.append(_gpu(library, index, handle, notes))
    return gpus


def _gpu(library: Any, index: int, handle: Any, notes: list[str]) -> dict[str, Any]:
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
    return {
        "index": index,
        "name": name or f"GPU {index}",
        "cc": cc,
        "uuid": uuid,
        "memory_bytes": memory_bytes,
    }


if __name__ == "__main__":
    found = loaded()
    if found is not None:
        print(json.dumps(read(found)))
