"""The siege: `tox run -e siege` prints every figure, `--small` is the form of at most five minutes that CI runs.

python siege/run.py [--small] [--write] [PART...]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = HERE / "figures.json"
PARTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # the whole siege, and the small form
    "kills": ({"runs": 200}, {"runs": 12}),
    "disk": ({}, {"faults": (7, 45), "small_disks": 4}),
    "flips": ({"flips": 2000}, {"flips": 300}),
    "badinput": ({"cases": 20_000}, {"cases": 1000}),
    "signals": ({"instants": 50, "container": True}, {"instants": 6, "container": False}),
    "container": ({}, {}),
    "soak": ({"seconds": 600.0}, {"seconds": 20.0}),
    "peers": ({"runs": 50, "flips": 120}, {}),
    "cost": ({}, {}),
}
NOT_SMALL = ("container", "peers", "cost")  # needs an engine; needs transformers; needs minutes


def main() -> int:
    parser = argparse.ArgumentParser(
        description="kill, fill, flip, feed and signal trainings, and count what is lost"
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--small", action="store_true", help="at most five minutes, for CI")
    parser.add_argument("--write", action="store_true", help="keep the figures for docs/siege.md")
    parser.add_argument(
        "--ran", type=Path, metavar="FILE", help="write what ran and what did not, for tools/ran.py"
    )
    options = parser.parse_args()
    sys.path.insert(0, str(HERE))
    parts = options.parts or [part for part in PARTS if not (options.small and part in NOT_SMALL)]
    figures = {}
    for part in parts:
        with tempfile.TemporaryDirectory(prefix="siege-", ignore_cleanup_errors=True) as place:
            os.environ["AMBIDEX_CACHE"] = str(Path(place, "cache"))
            started = time.monotonic()
            try:
                found = importlib.import_module(part).run(Path(place), **PARTS[part][options.small])
            except Exception:  # the other parts still have something to say
                found = {"broken": [traceback.format_exc()], "crashed": True}
        figures[part] = {**found, "seconds": round(time.monotonic() - started, 1)}
        print(f"{part}: {json.dumps(figures[part], indent=1, default=str)}", flush=True)
    if options.write:
        before = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
        kept = {**before, **{part: found for part, found in figures.items() if "crashed" not in found}}
        FIGURES.write_text(json.dumps(kept, indent=1, default=str) + "\n")
        importlib.import_module("page").write(HERE.parent / "docs" / "siege.md", kept)
    if options.ran:
        options.ran.parent.mkdir(parents=True, exist_ok=True)
        options.ran.write_text(json.dumps({"tests": ran(figures), "deselected": {}}, indent=1))
    lost = {part: losses for part, found in figures.items() if (losses := bad(part, found))}
    print(
        "siege: " + (f"NOT HELD: {json.dumps(lost, default=str)}" if lost else f"held: {', '.join(figures)}")
    )
    return 1 if lost else 0


def ran(figures: dict[str, Any]) -> dict[str, Any]:
    """Each part as a test that passed or failed, and what could not be tried as one that was skipped."""
    tests: dict[str, Any] = {}
    for part, found in figures.items():
        tests[f"siege/{part}"] = {"outcome": "failed" if bad(part, found) else "passed", "markers": ["siege"]}
        for why in found.get("not_run", []):
            tests[f"siege/{part}: {why}"] = {
                "outcome": "skipped",
                "markers": ["siege"],
                "reason": f"{part}: {why}",
            }
    return tests


def bad(part: str, found: dict[str, Any]) -> Any:
    """What breaks the promise; empty where nothing does. What transformers' Trainer loses breaks none of ours."""
    if part == "peers":
        return found.get("broken") or found["ambidex"]["broken"]
    return found.get("different_or_lost") or found.get("broken") or []


if __name__ == "__main__":
    sys.exit(main())
