"""`docker stop` at random instants of a container, in the image itself: tests/containers/test_signals.py, and its figures.

Takes the engine that is there; `.ci/engine run python siege/run.py container` makes one first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def run(place: Path) -> dict[str, Any]:
    ran = place / "ran.json"
    words = [
        "-m",
        "pytest",
        "tests/containers/test_signals.py",
        "-m",
        "containers and slow",
        "--ran",
        str(ran),
    ]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    tests = json.loads(ran.read_text())["tests"] if ran.exists() else {}
    return figures(tests, done.stdout + done.stderr)


def figures(tests: dict[str, Any], said: str) -> dict[str, Any]:
    """What the one test recorded; what it said where it failed; why it did not run where it was skipped."""
    found: dict[str, Any] = {"broken": [], "not_run": []}
    outcomes = {test["outcome"] for test in tests.values()}
    if outcomes == {"skipped"}:
        found["not_run"] += [test["reason"] for test in tests.values()]
    elif outcomes != {"passed"}:
        found["broken"].append(said[-3000:])
    for test in tests.values():
        found |= test.get("figures", {})
    return found
