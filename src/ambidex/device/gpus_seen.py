"""GPUs and driver, asked of whoever answers: NVML, then `nvidia-smi`, then the kernel's own files.

Three sources, because each of them is missing somewhere: a container may lack NVML, `nvidia-smi` may hang,
and the kernel's files tell only the driver.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ambidex.device import builds, container, gpus, nvml
from ambidex.device.ask import Answer, ask
from ambidex.device.machine import Driver, Gpu
from ambidex.device.paths import is_file, is_there, on_path
from ambidex.errors import Problems
from ambidex.escaping import one_line

_FIELDS = "index,uuid,name,compute_cap,driver_version,memory.total"
_OLD_FIELDS = "index,uuid,name,driver_version,memory.total"  # old drivers reject compute_cap


# Ranges of PCI device ids, Kepler's and those from the first Maxwell to the last Volta, and the last branch of the driver
# that drives such a GPU; `builds.json` has its evidence. Of what is older nothing is said.
_LAST_DRIVERS = (
    (range(0x0FC0, 0x1000), "470"),
    (range(0x1001, 0x1040), "470"),
    (range(0x1180, 0x1200), "470"),
    (range(0x1280, 0x12C0), "470"),
    (range(0x1340, 0x1E00), "580"),
)


@dataclass(frozen=True)
class Seen:
    """What was found, and what was not, in words. ``nvidia`` and ``amd``: any sign of such a GPU at all."""

    gpus: tuple[Gpu, ...] = ()
    driver: Driver = field(default_factory=Driver)
    nvidia: bool = False
    amd: bool = False
    hangs: bool = False  # the driver did not answer in time, so nothing else should be asked of it
    undriven: bool = False  # an NVIDIA GPU is on the bus, and no driver of NVIDIA's is loaded
    last_driver: str = (
        ""  # the last branch that drives the GPU on the bus, where a newer one is loaded, or none
    )
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Told:
    """What one source told. ``notes`` says what went wrong."""

    gpus: tuple[Gpu, ...] = ()
    driver: Driver = field(default_factory=Driver)
    notes: tuple[str, ...] = ()
    hangs: bool = False


def look(
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
    *,
    smi: str | None = None,
    nvml_told: Callable[[], Told] | None = None,
    put: Callable[..., Answer] = ask,
    seconds: float = 4.0,
) -> Seen:
    """Every GPU of this machine, hidden ones too, and its driver."""
    environ = environ or {}
    told = by_nvml() if nvml_told is None else nvml_told()
    found, driver, notes, hangs = told.gpus, told.driver, told.notes, told.hangs
    program = smi or find_smi(root, environ)
    if program is not None and not hangs and (not found or any(gpu.cc is None for gpu in found)):
        by_program = by_smi(program, put=put, seconds=seconds)
        found = by_program.gpus if len(by_program.gpus) >= len(found) else found
        driver = Driver(driver.version or by_program.driver.version, driver.cuda or by_program.driver.cuda)
        notes, hangs = (*notes, *by_program.notes), by_program.hangs
    found = found or jetson(root)
    driver = replace(driver, version=driver.version or driver_by_kernel(root))
    on_bus = pci_gpus(root)
    notes = (*notes, *_silence(root, found, driver, on_bus.get("nvidia", ()), hangs))
    shadow = container.compat_shadow(environ)
    if shadow:
        notes = (*notes, f"{shadow} on LD_LIBRARY_PATH shadows the driver's libcuda (error 804 on a GeForce)")
    nvidia = bool(found or driver.version or hangs) or container.has_nvidia_nodes(root)
    amd = is_there(root / "dev/kfd")
    if amd and not found:
        notes = (
            *notes,
            "an AMD GPU is here (/dev/kfd): torch has ROCm builds for it, which are not judged here",
        )
    undriven = bool(on_bus.get("nvidia")) and not nvidia
    last = "" if found or hangs else _last_driver(on_bus.get("nvidia", ()), driver)
    if last and driver.version:
        notes = (*notes, f"driver {driver.version} no longer drives that GPU: {last} is its last branch")
    return Seen(tuple(_named(gpu) for gpu in found), driver, nvidia, amd, hangs, undriven, last, notes)


def _last_driver(on_bus: Sequence[str], driver: Driver) -> str:
    """The branch that the GPUs on the bus need, where the driver is of a newer one or not there. NVIDIA numbers its chips by age."""
    numbers_on_bus = [int(device, 16) for device in on_bus if re.fullmatch(r"0x[0-9a-f]{1,4}", device)]
    ends = [next((last for ids, last in _LAST_DRIVERS if number in ids), "") for number in numbers_on_bus]
    late = [
        last for last in ends if last and (not driver.version or builds.is_of_a_later_branch(driver, last))
    ]
    return max(late, key=int) if late and len(late) == len(on_bus) else ""


def _named(gpu: Gpu) -> Gpu:
    """A capability that nobody told is looked up by the GPU's name."""
    if gpu.cc is not None:
        return gpu
    try:
        return replace(gpu, cc=gpus.find(gpu.name).cc)
    except Problems:  # a GPU newer than the table: unknown, not wrong
        return gpu


def find_smi(root: Path, environ: Mapping[str, str]) -> str | None:
    """``nvidia-smi`` where it is on PATH, else where WSL and Windows keep it."""
    found = on_path("nvidia-smi", environ.get("PATH"))
    if found:
        return found
    system = Path(environ.get("SystemRoot", "")) / "System32/nvidia-smi.exe"
    for place in (root / "usr/lib/wsl/lib/nvidia-smi", system):
        if is_file(place):
            return str(place)
    return None


def by_nvml(
    *,
    load: Callable[[str], Any] | None = None,
    put: Callable[..., Answer] = ask,
    seconds: float = 3.0,
) -> Told:
    """NVML's word, by way of a child process; nothing where this machine has no NVML."""
    if nvml.loaded(load) is None:
        return Told()
    # -I and -S: neither the user's modules nor site-packages are needed, and leaving them out is faster.
    answer = put([sys.executable, "-I", "-S", str(nvml.__file__)], seconds=seconds)
    if answer.trouble:
        hangs = "did not answer" in answer.trouble
        how = f"did not answer within {seconds:g} s" if hangs else f"broke down: {answer.trouble}"
        return Told(notes=(f"NVML {how}",), hangs=hangs)
    try:
        return _told_by_nvml(json.loads(answer.out))
    except (ValueError, KeyError, TypeError):
        return Told(notes=("NVML's answer could not be read",))


def _told_by_nvml(said: dict[str, Any]) -> Told:
    found = tuple(
        Gpu(
            one_line(str(row["name"])),
            (int(row["cc"][0]), int(row["cc"][1])) if row["cc"] else None,
            int(row["index"]),
            one_line(str(row["uuid"])),
            row["memory_bytes"],
        )
        for row in said["gpus"]
    )
    cuda = (int(said["cuda"][0]), int(said["cuda"][1])) if said["cuda"] else None
    version = one_line(str(said["driver"])) if said["driver"] else None
    return Told(found, Driver(version, cuda), tuple(one_line(str(note)) for note in said["notes"]))


def by_smi(program: str, *, put: Callable[..., Answer] = ask, seconds: float = 4.0) -> Told:
    """The word of ``nvidia-smi``."""
    answer = put([program, f"--query-gpu={_FIELDS}", "--format=csv,noheader"], seconds=seconds)
    fields = _FIELDS
    if answer.code not in (0, None) and "compute_cap" in answer.out + answer.err:
        answer = put([program, f"--query-gpu={_OLD_FIELDS}", "--format=csv,noheader"], seconds=seconds)
        fields = _OLD_FIELDS
    if answer.trouble:
        said = _first_words(answer.err or answer.out)
        note = answer.trouble + (f': "{said}"' if said else "")
        # One GPU that fell silent ends it with an error code, after the rows of the others.
        listed, its_driver = parse_csv(answer.out, fields.split(","))
        return Told(listed, Driver(its_driver), (note,), "did not answer" in answer.trouble)
    found, version = parse_csv(answer.out, fields.split(","))
    if not found:
        said = _first_words(answer.out)
        return Told(
            notes=(f'nvidia-smi named no GPU; it said "{said}"' if said else "nvidia-smi said nothing",)
        )
    # The header is asked for one number that the table has too: half the time has to do.
    return Told(found, Driver(version, cuda_of_header(put([program], seconds=seconds / 2).out)))


def parse_csv(text: str, fields: Sequence[str]) -> tuple[tuple[Gpu, ...], str | None]:
    """GPUs and driver version from `--format=csv,noheader`. Lines that are no such row are passed over."""
    import csv

    found: dict[int, Gpu] = {}
    version = None
    for line in text.replace("\0", "").splitlines():
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], skipinitialspace=True), [])]
        except csv.Error:
            continue
        row = dict(zip(fields, cells))
        number = row.get("index", "")
        if len(cells) != len(fields) or not re.fullmatch(r"[0-9]{1,4}", number) or not row["name"]:
            continue
        uuid = row["uuid"] if re.fullmatch(r"(GPU|MIG)-[\w-]{4,64}", row["uuid"]) else ""
        gpu = Gpu(
            one_line(row["name"], 120),
            _cc(row.get("compute_cap", "")),
            int(number),
            uuid,
            _mebibytes(row["memory.total"]),
        )
        found.setdefault(gpu.index, gpu)
        if re.fullmatch(r"\d{2,4}(\.\d+){1,3}", row["driver_version"]):
            version = version or row["driver_version"]
    return tuple(found[index] for index in sorted(found)), version


def cuda_of_header(text: str) -> tuple[int, int] | None:
    """``CUDA Version: 12.8`` (``CUDA UMD Version`` from driver 6xx on) in nvidia-smi's own table."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*([0-9]{1,3})\.([0-9]{1,3})\b", text)
    return (int(found[1]), int(found[2])) if found else None


def jetson(root: Path) -> tuple[Gpu, ...]:
    """The GPU of a Jetson, which NVML and nvidia-smi may not list: its board names itself to the kernel."""
    board = _line(root / "proc/device-tree/model").strip("\0")
    named = re.search(r"jetson[\w ]*", board)
    return (Gpu(" ".join(named[0].replace("developer kit", "").split()).title(), None),) if named else ()


def driver_by_kernel(root: Path) -> str | None:
    """The version of the loaded kernel module, by /sys or /proc."""
    for name in ("sys/module/nvidia/version", "proc/driver/nvidia/version"):
        try:
            text = (root / name).read_text("utf-8", "replace")[:4096]
        except (OSError, ValueError):
            continue
        found = re.search(r"(?:Module[^\n]*?\s|^)(\d{3,4}(?:\.\d+){1,3})\b", text)
        if found:
            return found[1]
    return None


def pci_gpus(root: Path) -> dict[str, tuple[str, ...]]:
    """Display controllers on the PCI bus, by maker, as device ids: seen without any driver."""
    makers = {"0x10de": "nvidia", "0x1002": "amd"}
    found: dict[str, tuple[str, ...]] = {}
    try:
        devices = sorted((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        return {}
    for device in devices:
        vendor, kind = _line(device / "vendor"), _line(device / "class")
        if vendor in makers and kind.startswith(("0x0300", "0x0302")):
            found[makers[vendor]] = (*found.get(makers[vendor], ()), _line(device / "device"))
    return found


def _silence(
    root: Path, found: Sequence[Gpu], driver: Driver, on_bus: Sequence[str], hangs: bool
) -> tuple[str, ...]:
    """Why there may be a GPU although none answered."""
    if found or hangs or not on_bus:
        return ()
    ids = ", ".join(on_bus)
    if container.has_nvidia_nodes(root) or driver.version:
        return (
            f"an NVIDIA GPU is on the PCI bus (device {ids}), but the driver does not list it for this "
            f"process",
        )
    return (f"an NVIDIA GPU is on the PCI bus (device {ids}), but no NVIDIA driver is loaded",)


def _cc(text: str) -> tuple[int, int] | None:
    found = re.fullmatch(r"([0-9]{1,2})\.([0-9])", text)
    return (int(found[1]), int(found[2])) if found else None


def _mebibytes(text: str) -> int | None:
    found = re.fullmatch(r"([0-9]{1,9}) MiB", text)
    return int(found[1]) << 20 if found else None


def _first_words(text: str) -> str:
    """The beginning of what a program said, or that it cannot be read: rubbish must not reach a terminal."""
    words = " ".join(text.split())[:120]
    return words if words.isascii() and words.isprintable() else "(nothing readable)"


def _line(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace").strip().lower()
    except (OSError, ValueError):
        return ""
