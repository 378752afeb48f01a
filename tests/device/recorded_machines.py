"""The recorded machines of `machines.toml`, as the rules take them: for the tests and the rivals' table."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from ambidex.device import gpus, whatif
from ambidex.device.machine import Arch, Build, Container, Driver, Extension, Gpu, Machine, Tried
from ambidex.device.version import TorchVersion, cuda_of_tag

ROWS: list[dict[str, Any]] = tomllib.loads(
    Path(__file__).with_name("machines.toml").read_text(encoding="utf-8")
)["machine"]


def machine_of(row: dict[str, Any]) -> Machine:
    return Machine(
        os=row.get("os", "linux"),
        machine=row.get("machine", "x86_64"),
        python=row.get("python", "3.11"),
        build=_build(row),
        gpus=tuple(_gpus(row)),
        driver=Driver(row.get("driver")),
        container=Container(row.get("container", ""), row.get("gpu_passed")),
        env=row.get("env", {}),
    )


def extensions_of(row: dict[str, Any]) -> list[Extension] | None:
    found = row.get("extensions")
    return [Extension(name, archs(text)) for name, text in found.items()] if found else None


def probe_of(row: dict[str, Any]) -> list[Tried] | None:
    return [Tried(0, **row["probe"])] if "probe" in row else None


def archs(text: str) -> tuple[Arch, ...]:
    return tuple(Arch.parse(entry) for entry in text.split())


def _build(row: dict[str, Any]) -> Build:
    if row.get("missing"):
        return Build(missing="No torch is installed.")
    if "broken" in row:
        return Build(row["torch"], cuda="13.0", broken=row["broken"])
    if row.get("unreadable"):
        return Build(row["torch"], row["cuda"])
    if "archs" in row:
        version = TorchVersion.parse(row["torch"])
        cuda = row.get("cuda") or cuda_of_tag(version.local if version else "")
        return Build(row["torch"], cuda, archs=archs(row["archs"]), source="scanned")
    where = {key: row[key] for key in ("torch", "os", "machine") if key in row}
    return whatif.machine_from(**where).build


def _gpus(row: dict[str, Any]) -> list[Gpu]:
    named = [text.strip() for text in row.get("gpu", "").split(",") if text.strip()]
    visible = not row.get("hidden", False)
    return [Gpu(text, gpus.find(text).cc, index, visible=visible) for index, text in enumerate(named)]
