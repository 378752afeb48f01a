"""The files that say the same thing in their own words: the table of variants, and all that is checked against it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROWS: dict[str, dict[str, Any]] = {
    name: row
    for name, row in tomllib.loads((ROOT / "src/ambidex/device/variants.toml").read_text("utf-8")).items()
    if name != "meta"
}
PYTHONS = ["3.11", "3.12", "3.13"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def read_yaml(path: Path | str) -> dict[Any, Any]:
    yaml = pytest.importorskip("yaml")
    return dict(yaml.safe_load((ROOT / path).read_text("utf-8")))


@functools.cache
def tox(*keys: str) -> dict[str, Any]:
    """tox.ini as tox itself understands it: {"env": {name: {key: value}}, "tox": {key: value}}."""
    pytest.importorskip("tox")
    words = [sys.executable, "-m", "tox", "config", "-e", "ALL", "--core", "--format", "json", "-k", *keys]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    answer["env"] = {name: found for name, found in answer["env"].items() if not name.startswith(".")}
    return dict(answer)


def table(page: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table after `heading` in a page: first cell -> the others. Several names share a row."""
    after = text(page).split(heading, 1)
    assert len(after) == 2, f"{page} has no {heading!r}"
    lines = re.search(r"^\|.*\n\|[-:| ]+\n((?:\|.*\n)+)", after[1], re.MULTILINE)
    assert lines, f"{page} has no table after {heading!r}"
    rows = {}
    for line in lines[1].splitlines():
        first, *others = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`([^`]+)`", first):
            assert name not in rows, f"{page} has {name} twice"
            rows[name] = others
    return rows
