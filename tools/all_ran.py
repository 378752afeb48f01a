"""Whether every job of a CI's matrix left a result and passed: `python tools/all_ran.py FOLDER`, the rows on standard input.

FOLDER holds one folder for each row, by the row's name, with tox's result file in it (tox.json). A job that never began
leaves none, and a CI that only looks at failures calls that green.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import ran


def main(folder: Path, rows: list[dict[str, Any]]) -> int:
    lines = ["| job | | seconds | proved |", "|---|---|---:|---|"]
    wrong = [] if rows else ["the list of jobs is empty"]
    for row in rows:
        result = read(folder / row["name"] / "tox.json")
        entry = result.get("testenvs", {}).get(row["environment"], {})
        found = ran.failures(row["environment"], entry)
        word = (
            "ok"
            if not found
            else "NOT OK"
            if row["required"]
            else "not ok, and need not be: its build floats"
        )
        seconds = entry.get("result", {}).get("duration") or 0
        lines.append(f"| {row['name']} | {word} | {seconds:.0f} | {ran.proof(entry)} |")
        wrong += [f"{row['name']}: {sentence}" for sentence in found if row["required"]]
    for job, why in not_run().items():
        lines.append(f"| {job} | not run | 0 | {why} |")
    text = "\n".join(lines)
    print(text)
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(page).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def not_run() -> dict[str, str]:
    """Jobs that this project has and this run had no machine for: `NOT_RUN="GPU: no runner"`, one a line."""
    lines = [line for line in os.environ.get("NOT_RUN", "").splitlines() if ": " in line]
    return {job: why for job, _, why in (line.partition(": ") for line in lines)}


def read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, json.JSONDecodeError):
        return {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), json.load(sys.stdin)))
