"""The image that this process runs in, by the record that its build left, and the image that fits where it does not.

In an image torch is not replaced, the image is: so where a build has no code for the GPU, the way out is the service to
run on the host. `docker/record.py` writes the record and stops a build that is not what its row of the variants says.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from ambidex.device import gpus, variants
from ambidex.device.covers import listed, sm
from ambidex.device.diagnosis import Diagnosis, Fix
from ambidex.device.machine import Arch, Driver, Gpu, Machine
from ambidex.errors import Problems

RECORD = Path("opt/ambidex/record.json")  # below the root

# The images that compose.yaml builds, as what is typed on the host, the one to prefer first.
_SERVICES = {"cu130": "docker compose run --rm train-gpu"}
_ANY_SERVICE = "GPU_VARIANT={variant} docker compose run --rm train-gpu-nightly"


@dataclass(frozen=True)
class Image:
    """What the record says is inside. ``nightly`` is the day on which a nightly was built."""

    variant: str
    torch: str
    archs: tuple[Arch, ...] = ()
    channel: str = "stable"
    state: str = ""  # living, frozen or known, as the row said when the image was built
    says: str = ""  # the row's own sentence
    nightly: date | None = None
    revision: str | None = None  # the project's commit

    def introduction(self, today: date | None = None) -> str:
        """One line for the start: which variant, what it can run, and for a nightly its age."""
        code = f"code for {listed(self.archs)}" if self.archs else "no GPU code"
        parts = [f"{self.variant}: torch {self.torch}, {code}", self.age(today)]
        return "; ".join(part for part in (*parts, self._state()) if part)

    def age(self, today: date | None = None) -> str:
        """How old a nightly is, in words; empty for a release."""
        if self.nightly is None:
            return ""
        days = ((today or date.today()) - self.nightly).days
        return f"a nightly of {self.nightly}, {days} day{'s' * (days != 1)} old"

    def _state(self) -> str:
        return f"{self.state}: {self.says}" if self.state in ("frozen", "known") else ""


def read(root: Path = Path("/")) -> Image | None:
    """The image of this process; None where it runs in none of ours, or the record cannot be read."""
    try:
        record = json.loads((root / RECORD).read_text("utf-8"))
        row, torch = record["row"], record["torch"]
        nightly = record.get("nightly_date")
        return Image(
            variant=record["variant"],
            torch=torch["version"],
            archs=tuple(Arch.parse(entry) for entry in torch["archs"]),
            channel=row["channel"],
            state=row["state"],
            says=row.get("says", ""),
            nightly=date.fromisoformat(nightly) if nightly else None,
            revision=record.get("project", {}).get("revision"),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def host_gpus(root: Path = Path("/")) -> tuple[tuple[Gpu, ...], Driver]:
    """The host's GPUs and driver by the kernel's own files, which a container sees even when it was given no GPU."""
    found: list[Gpu] = []
    for file in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        name = re.search(r"^Model:\s*(.+?)\s*$", _text(file), re.MULTILINE)
        if name:
            found.append(Gpu(name[1], _capability(name[1]), len(found)))
    version = re.search(r"\s(\d{3}\.\d+(\.\d+)?)\s", _text(root / "proc/driver/nvidia/version"))
    return tuple(found), Driver(version[1] if version else None)


def instead(image: Image | None, machine: Machine, root: Path = Path("/")) -> Fix | None:
    """The image that has code for this machine's GPUs where this one has none; None where nothing is to be said.

    A container that was given no GPU still sees the host's in /proc; they count as well.
    """
    if image is None:
        return None
    if not machine.gpus:
        found, driver = host_gpus(root)
        machine = replace(machine, gpus=found, driver=driver)
    wanted = [gpu for gpu in machine.gpus if gpu.cc is not None]
    if not wanted:
        return None
    table = {row["name"]: row for row in variants.table(machine)}
    own = table.get(image.variant, {})
    if own.get("fits") and "cuda" in own:
        return None
    fitting = [row for row in table.values() if row["fits"] and "cuda" in row and row["state"] != "known"]
    if not fitting:
        return None
    best = min(
        fitting,
        key=lambda row: (row["name"] not in _SERVICES, row["channel"] != "stable", row["state"] != "living"),
    )
    typed = _SERVICES.get(best["name"], _ANY_SERVICE.format(variant=best["name"]))
    whose = " and ".join(dict.fromkeys(f"{gpu.name} ({sm(gpu.cc)})" for gpu in wanted if gpu.cc))
    return Fix(
        (typed,),
        why=f"On the host: the image {best['name']} has code for {whose}, and this one, {image.variant}, has not.",
    )


def with_image(
    diagnosis: Diagnosis, image: Image | None, machine: Machine, root: Path = Path("/")
) -> Diagnosis:
    """The diagnosis with the image to use in place of what would be installed: an image is not changed from inside."""
    fix = instead(image, machine, root)
    if fix is None:
        return diagnosis
    kept = tuple(other for other in diagnosis.fixes if not other.installs)
    return replace(diagnosis, fixes=(fix, *kept))


def permission_fix(root: Path = Path("/")) -> str:
    """What to type where a folder of the host belongs to somebody else; empty outside our images."""
    return "on the host, run as the folder's owner: echo RUN_AS=$(id -u) >> .env" if read(root) else ""


def _capability(name: str) -> tuple[int, int] | None:
    try:
        return gpus.find(name).cc
    except Problems:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""
