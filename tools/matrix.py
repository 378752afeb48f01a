"""The jobs of a CI, made from tox's own machine-readable list, so that nothing is listed twice.

    python tools/matrix.py condensed     what a pull request runs
    python tools/matrix.py all           what runs every night
    python tools/matrix.py images        one row for each image that can be built and has a pin

Each prints one line of JSON: a list of {name, environment, python, os, required}, or of {variant}. With GITHUB_OUTPUT set
it is written there as `rows` too. A row that is not required may fail: its build floats, so today's failure need not be
ours.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch_first

RUNNERS = {"linux": "ubuntu-latest", "macos": "macos-latest", "windows": "windows-latest"}
# Environments that a person types and no CI needs.
ALWAYS = {"compare-quick"}  # minutes, and no laptop's `tox run` needs it
BY_HAND = {"train", "bench", "reference", "containers", "image"}


def tox_list() -> tuple[list[str], list[str]]:
    """(what tox run runs, every environment there is)."""
    words = [
        sys.executable,
        "-m",
        "tox",
        "config",
        "-e",
        "ALL",
        "-k",
        "description",
        "env_list",
        "--core",
        "--format",
        "json",
    ]
    said = subprocess.run(words, cwd=torch_first.ROOT, capture_output=True, text=True, check=True).stdout
    answer = json.loads(said)
    return answer["tox"]["env_list"], [name for name in answer["env"] if not name.startswith(".")]


def rows(which: str, default: list[str], every: list[str]) -> Iterator[dict[str, Any]]:
    pythons = sorted(
        {python for name in every if (python := python_of(name))}, key=lambda text: int(text[2:])
    )
    for name in every:
        for system in systems(name):
            if (which == "all" and name not in BY_HAND) or condensed(name, system, default, pythons):
                yield {
                    "name": f"{name} on {system}",
                    "environment": name,
                    "python": python_of(name) or pythons[0],
                    "os": RUNNERS[system],
                    "required": required(name),
                }


def systems(name: str) -> list[str]:
    """Where an environment can run: the CPU build everywhere, CUDA's on Linux, a tool where it is quickest."""
    if not python_of(name):
        return ["linux"]
    variant = torch_first.variant_of(name)
    if variant == "none":
        return list(RUNNERS)
    # macOS has one build of torch, without a tag, which counts as the CPU's.
    return [*torch_first.row_of(variant)["oses"], "macos"] if variant == "cpu" else ["linux"]


def condensed(name: str, system: str, default: list[str], pythons: list[str]) -> bool:
    """On Linux what `tox run` runs, the newest Python and `ALWAYS`; elsewhere the oldest Python alone."""
    if system == "linux":
        return name in default or name in ALWAYS or name == f"py{pythons[-1].replace('.', '')}-cpu"
    return name == f"py{pythons[0].replace('.', '')}-cpu"


def required(name: str) -> bool:
    if not python_of(name) or (variant := torch_first.variant_of(name)) == "none":
        return True
    row = torch_first.row_of(variant)
    return row["channel"] == "stable" or "torch" in row or (torch_first.PINS / f"{variant}.json").exists()


def images() -> Iterator[dict[str, Any]]:
    """Every row of the table whose torch is known beforehand and for which there are pinned requirements."""
    for path in sorted((torch_first.ROOT / "docker" / "requirements").glob("*.txt")):
        if path.stem not in ("common", "test"):
            torch_first.row_of(path.stem)
            yield {"variant": path.stem}


def python_of(name: str) -> str:
    """`py312-cpu` -> `3.12`; empty where the name has no Python."""
    found = re.match(r"py3(\d+)-", name)
    return f"3.{found[1]}" if found else ""


def main(which: str) -> int:
    made = list(images() if which == "images" else rows(which, *tox_list()))
    text = json.dumps(made)
    print(text)
    if output := os.environ.get("GITHUB_OUTPUT"):
        with Path(output).open("a", encoding="utf-8") as file:
            file.write(f"rows={text}\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:] not in (["condensed"], ["all"], ["images"]):
        sys.exit("error: which jobs? type: python tools/matrix.py condensed, or all, or images")
    sys.exit(main(sys.argv[1]))
