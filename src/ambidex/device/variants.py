"""`ambidex variants`: the table of ways to install torch, and which of them fit this machine."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from ambidex.device import builds
from ambidex.device.covers import driver_allows, sm, verdict
from ambidex.device.machine import Arch, Build, Machine
from ambidex.device.version import numbers


@cache
def rows() -> dict[str, dict[str, Any]]:
    """Every variant of `variants.toml` by name, in its order."""
    import tomllib  # not for every question to the doctor

    text = Path(__file__).with_name("variants.toml").read_text(encoding="utf-8")
    return {name: row for name, row in tomllib.loads(text).items() if name != "meta"}


def table(machine: Machine) -> list[dict[str, Any]]:
    """A dictionary a variant, as `--json` prints it: the row, `name`, `fits` (None: unknown), `because`."""
    judged = []
    for name, row in rows().items():
        fits, because = _fits(row, machine)
        judged.append({"name": name, **row, "fits": fits, "because": because})
    return judged


def render(table: Sequence[dict[str, Any]]) -> str:
    """The same for people: two lines a variant."""
    lines = []
    for row in table:
        torch = row.get("torch", "newest night")
        newest = f", index has {row['newest']}" if row.get("newest", torch) != torch else ""
        cuda = f"CUDA {row['cuda']}" if "cuda" in row else "no CUDA"
        word = {True: "fits", False: "no", None: "?"}[row["fits"]]
        lines.append(f"{row['name']:<14} {word:<5} {torch}{newest}, {cuda}, {row['state']}: {row['because']}")
        lines.append(f"{'':<20} {row['says']}")
    return "\n".join(lines)


def cpu_release(machine: Machine) -> tuple[str, str, str]:
    """A torch for this machine's CPU, its index (empty for PyPI), and the Python to use where this one has none.

    All are empty where no wheel is.
    """
    row = rows()["cpu"]
    first, last = (numbers(end) for end in row["pythons"])
    on_the_index = machine.os in row["oses"] and machine.machine == "x86_64"
    if on_the_index and first <= numbers(machine.python)[:2] <= last:
        return f"{row['torch']}+{row['local']}", row["index"], ""
    found = builds.newest_on_pypi(machine.python, machine.os, machine.machine)
    if found is None:
        return "", "", ""
    if found[1] and on_the_index:
        return f"{row['torch']}+{row['local']}", row["index"], row["pythons"][1]
    return found[0], "", found[1]


def _fits(row: dict[str, Any], machine: Machine) -> tuple[bool | None, str]:
    if machine.os not in row["oses"]:
        return False, f"not built for {machine.os}"
    if "pythons" in row:
        first, last = row["pythons"]
        if not numbers(first) <= numbers(machine.python)[:2] <= numbers(last):
            return False, f"Python {first} to {last}, and this is {machine.python}"
    if row["local"] == "cpu":
        return True, "works anywhere, on the CPU"
    gpus = [gpu for gpu in machine.gpus if gpu.cc is not None]
    if not gpus:
        return False, "no GPU here"
    build = _build(row, machine)
    host = "windows" if machine.container.kind == "wsl" else machine.os
    if not all(driver_allows(machine.driver, build, gpu, host) for gpu in gpus):
        return False, f"the driver, {machine.driver.version}, is too old"
    if build.archs is None:
        return None, "what it has code for is in no table"
    found = [
        (gpu, verdict(build, gpu, machine.driver, machine.python, machine.os, machine.machine))
        for gpu in gpus
    ]
    dead = [sm(gpu.cc) for gpu, said in found if gpu.cc and not said.runs]
    if dead:
        return False, f"no code for {' and '.join(dict.fromkeys(dead))}"
    return True, "; ".join(dict.fromkeys(said.reason for _, said in found))


def _build(row: dict[str, Any], machine: Machine) -> Build:
    if "torch" not in row:
        return Build(f"nightly+{row['local']}", row["cuda"])
    version = f"{row['torch']}+{row['local']}"
    archs = builds.archs(version, machine.os, machine.machine)
    if archs is None and (machine.os, machine.machine) == ("linux", "x86_64"):
        archs = tuple(Arch.parse(entry) for entry in row["archs"])
    return Build(version, row["cuda"], archs=archs, source="table")
