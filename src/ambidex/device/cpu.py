"""The processor: its name, instruction set, physical cores, and how much of it this process may use.

A container's `--cpus` is a time quota of the cgroup, which neither `os.cpu_count` nor affinity nor OpenMP
sees: with more threads than quota, every step waits for the scheduler. So the quota is read where the kernel
keeps it.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from ambidex.device.ask import Answer, ask
from ambidex.device.machine import Cpu

# Linux's name for a feature -> ours. Only what decides how fast a training step can be.
_X86 = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "amx_fp16"),
)
_ARM = {
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "sve": "sve",
    "sve2": "sve2",
    "bf16": "bf16",
}
_FAST_BF16 = frozenset({"avx512_bf16", "amx_bf16"})


def has_fast_bf16(isa: Iterable[str]) -> bool:
    """Whether bf16 matrix products run faster than fp32 ones here: AVX512_BF16 or AMX.

    By instruction set, never by a stopwatch, so that the same machine always answers the same.
    """
    return not _FAST_BF16.isdisjoint(isa)


def identity(root: Path = Path("/")) -> str:
    """All by which one processor differs from another to a compiler that compiles for just this one."""
    try:
        first = (root / "proc/cpuinfo").read_text("utf-8", "replace").split("\n\n")[0]
    except OSError:
        return ""
    kept = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU implementer", "CPU part",
            "CPU variant")  # fmt: skip
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in kept)


def family(root: Path = Path("/")) -> int:
    """The family that CPUID gives, 25 for AMD's Zen 3 and 4; 0 where nobody says."""
    found = re.search(r"^cpu family\s*: (\d{1,4})$", identity(root), re.MULTILINE)
    return int(found[1]) if found else 0


def threads_for_training(cpu: Cpu | None = None) -> int:
    """Threads that a training step should use: the physical cores it may use, and no more than its quota; >=
    1.

    Of a fractional quota the whole part counts: 2.5 CPUs give 2 threads, because a third would be stopped
    half of the time and the other two would wait for it.
    """
    cpu = look() if cpu is None else cpu
    quota = math.inf if cpu.quota is None else math.floor(cpu.quota)
    return int(max(1, min(cpu.cores, cpu.affinity, quota)))


def threads_by_default(cpu: Cpu, environ: Mapping[str, str], machine: str = "x86_64") -> int:
    """Threads that torch takes when nobody tells it: what the environment says, else MKL's or OpenMP's
    default.

    MKL (in the x86 wheels) takes the physical cores of the affinity, OpenMP alone every logical one. Neither
    sees the quota.
    """
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        first = environ.get(name, "").split(",")[0].strip()
        if first.isascii() and first.isdigit() and int(first[:6]) > 0:
            return int(first[:6])
    return max(1, min(cpu.cores, cpu.affinity) if machine == "x86_64" else cpu.affinity)


def look(
    root: Path = Path("/"),
    *,
    os_name: str | None = None,
    affinity: Collection[int] | None = None,
    put: Callable[..., Answer] = ask,
) -> Cpu:
    """This process's processor. ``root`` is where a fake /proc and /sys may lie."""
    os_name = os_name or {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")
    usable = affinity if affinity is not None else _affinity()
    if os_name == "macos":
        return _macos(put)
    if os_name == "windows":
        return _windows(usable)
    name, isa, listed = _cpuinfo(_text(root / "proc/cpuinfo"))
    cores = _cores_by_topology(root, usable) or _cores_by_cpuinfo(listed, usable) or len(usable)
    return Cpu(name, max(1, min(cores, len(usable))), max(1, len(usable)), quota(root), isa)


def _affinity() -> Collection[int]:
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return range(os.cpu_count() or 1)


def _cpuinfo(text: str) -> tuple[str, tuple[str, ...], dict[int, tuple[str, str]]]:
    """Name, instruction set, and for each logical processor its (socket, core)."""
    name, flags = "", ""
    listed: dict[int, tuple[str, str]] = {}
    for block in re.split(r"\n\s*\n", text):
        fields = {
            key.strip().lower(): value.strip()
            for key, _, value in (line.partition(":") for line in block.splitlines())
        }
        name = name or fields.get("model name", "") or fields.get("hardware", "")
        flags = flags or fields.get("flags", "") or fields.get("features", "")
        number = fields.get("processor", "")
        if number.isascii() and number.isdigit() and "core id" in fields:
            listed[int(number[:9])] = (fields.get("physical id", "0"), fields["core id"])
    present = set(flags.split())
    isa = tuple(flag for flag in _X86 if flag in present)
    return name, isa or tuple(ours for theirs, ours in _ARM.items() if theirs in present), listed


def _cores_by_topology(root: Path, usable: Collection[int]) -> int:
    """Distinct sets of hyper-thread siblings among the usable processors; 0 where the kernel does not say."""
    siblings = set()
    for number in usable:
        text = _text(root / f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list").strip()
        if not text:
            return 0
        siblings.add(text)
    return len(siblings)


def _cores_by_cpuinfo(listed: Mapping[int, tuple[str, str]], usable: Collection[int]) -> int:
    return len({listed[number] for number in usable if number in listed})


def quota(root: Path = Path("/")) -> float | None:
    """CPUs that the cgroup grants, None where it sets no limit. The tightest of the group and its parents
    counts.

    cgroup v2 writes ``QUOTA PERIOD`` or ``max PERIOD`` (microseconds) into cpu.max, v1 two files with -1 for
    none.
    """
    limits = [limit for limit in (*_quota_v2(root), *_quota_v1(root)) if limit is not None]
    return min(limits) if limits else None


def _quota_v2(root: Path) -> list[float | None]:
    return [_limit(*_two(_text(folder / "cpu.max"))) for folder in _groups(root, "", ("",))]


def _quota_v1(root: Path) -> list[float | None]:
    mounts = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
    return [
        _limit(_text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us"))
        for folder in _groups(root, "cpu", mounts)
    ]


def _groups(root: Path, controller: str, mounts: tuple[str, ...]) -> list[Path]:
    """The folders of this process's group and its parents, under each mount that is there.

    A container may show the host's path for its group while its mount begins at the group itself; the mount's
    own root is therefore always among them.
    """
    inside = ""
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3 and controller in parts[1].split(","):
            inside = parts[2]
    names = [part for part in inside.split("/") if part not in ("", ".", "..")]
    folders = []
    for mount in mounts:
        base = root / "sys/fs/cgroup" / mount
        folders += [base.joinpath(*names[:depth]) for depth in range(len(names) + 1)]
    return folders


def _two(text: str) -> tuple[str, str]:
    words = text.split()
    return (words[0], words[1] if len(words) > 1 else "100000") if words else ("", "")


def _limit(quota_us: str, period_us: str) -> float | None:
    """CPUs, or None for no limit and for anything that is not two positive numbers."""
    try:
        granted, period = float(quota_us), float(period_us)
    except ValueError:
        return None
    if not (0 < granted < math.inf and 0 < period < math.inf):
        return None
    return granted / period


def _macos(put: Callable[..., Answer]) -> Cpu:
    def sysctl(name: str) -> str:
        return put(["sysctl", "-n", name], seconds=2.0).out.strip()

    def number(name: str) -> int:
        found = sysctl(name)
        return int(found[:6]) if found.isascii() and found.isdigit() else 0

    # Efficiency cores hold a step's threads up: on Apple silicon the performance cores alone count.
    cores = number("hw.perflevel0.physicalcpu") or number("hw.physicalcpu") or 1
    isa: tuple[str, ...] = ("neon", "bf16") if sysctl("hw.optional.arm.FEAT_BF16") == "1" else ()
    if not isa and sysctl("hw.optional.arm64") == "1":
        isa = ("neon",)
    if sysctl("hw.optional.avx2_0") == "1":
        isa = ("avx", "fma", "avx2")
    return Cpu(sysctl("machdep.cpu.brand_string"), cores, max(cores, number("hw.logicalcpu")), None, isa)


def _windows(usable: Collection[int]) -> Cpu:
    """What Windows tells without help: physical cores, AVX2, AVX-512. Not run on Windows yet."""
    cores, isa = 0, []
    with contextlib.suppress(Exception):
        import ctypes

        kernel: object = ctypes.CDLL("kernel32")
        cores = _windows_cores(kernel)
        present = kernel.IsProcessorFeaturePresent  # type: ignore[attr-defined]
        isa = [name for number, name in ((39, "avx"), (40, "avx2"), (41, "avx512f")) if present(number)]
    count = max(1, len(usable))
    import platform

    return Cpu(platform.processor(), max(1, min(cores or count, count)), count, None, tuple(isa))


def _windows_cores(kernel: object) -> int:
    """Entries of kind 0 (a core) in GetLogicalProcessorInformation's 32-byte records."""
    import ctypes

    size = ctypes.c_ulong(0)
    ask_for = kernel.GetLogicalProcessorInformation  # type: ignore[attr-defined]
    ask_for(None, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    if not size.value or not ask_for(buffer, ctypes.byref(size)):
        return 0
    records = range(0, size.value - 31, 32)
    return sum(int.from_bytes(buffer.raw[at + 8 : at + 12], "little") == 0 for at in records)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 << 20).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
