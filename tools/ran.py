"""Read what tox and pytest wrote down, say plainly what ran and what did not, and fail unless all that is required ran.

    python tools/ran.py tox.json ENVIRONMENT... [--marker gpu]

tox calls a run green in which some environments were skipped, and pytest one in which some tests were; we do not. An
environment that is required has to have run its commands and passed. In it, pytest has to have passed some tests. A
marker that is required (`--marker`) has to have tests that passed and none that was skipped. The summary goes to the
screen and, on GitHub, to the page of the run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("result", type=Path, help="what tox run --result-json wrote")
    parser.add_argument("required", nargs="+", metavar="ENVIRONMENT", help="has to have run and passed")
    parser.add_argument("--marker", action="append", default=[], help="its tests have to have run and passed")
    asked = parser.parse_args(arguments)
    try:
        result = json.loads(asked.result.read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        print(f"error: tox left no result: {error}", file=sys.stderr)
        return 1
    text = summary(result, asked.required)
    print(text)
    if page := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(page).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    wrong = [*complaints(result, asked.required), *marker_complaints(result, asked.required, asked.marker)]
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


# -- what has to have run --------------------------------------------------------------------------------------------


def complaints(result: dict[str, Any], required: Sequence[str]) -> list[str]:
    """A sentence for each required environment that did not run and pass, and for each test run in it that was empty."""
    found = []
    for name in required:
        entry = result.get("testenvs", {}).get(name, {})
        found += [f"{name}: {sentence}" for sentence in [*failures(name, entry), *empty_runs(entry)]]
    return found


def failures(name: str, entry: dict[str, Any]) -> list[str]:
    """What tox itself says is wrong with one environment; empty where it ran and passed."""
    if not entry:
        return ["never started"]
    if entry.get("result", {}).get("skipped") or entry.get("skipped"):
        return ["was skipped"]
    if not entry.get("result", {}).get("success"):
        return ["failed"]
    if not entry.get("test"):
        return ["ran no command"]
    if re.match(r"py3\d+-", name) and not proof(entry):
        return ["did not prove which build it tests"]
    return []


def empty_runs(entry: dict[str, Any]) -> Iterator[str]:
    """Of the environment's test runs, those that wrote no report, or in which nothing passed.

    Only tests that want a GPU may be skipped all together: not every machine has one. `--marker gpu` forbids it.
    """
    for path in report_paths(entry):
        report = read_report(path)
        if report is None:
            yield f"{path.name} was to be written by pytest and was not"
            continue
        tests = list(report["tests"].values())
        for_a_gpu = bool(tests) and all("gpu" in test["markers"] for test in tests)
        if not for_a_gpu and not any(test["outcome"] == "passed" for test in tests):
            yield f"{path.name} holds no test that passed"


def marker_complaints(result: dict[str, Any], required: Sequence[str], markers: Sequence[str]) -> list[str]:
    found = []
    for marker in markers:
        tests = [
            test
            for name in required
            for path in report_paths(result.get("testenvs", {}).get(name, {}))
            for test in (read_report(path) or {"tests": {}})["tests"].values()
            if marker in test["markers"]
        ]
        counts = Counter(test["outcome"] for test in tests)
        if not counts["passed"] or len(tests) > counts["passed"]:
            what = ", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "none ran"
            found.append(f"tests marked {marker}: {what}; all have to pass")
    return found


# -- what is said ----------------------------------------------------------------------------------------------------


def summary(result: dict[str, Any], required: Sequence[str]) -> str:
    """A table of what ran, then every kind of test that did not, with its reason, then the environments nobody asked for."""
    environments = result.get("testenvs", {})
    named = [
        *required,
        *(name for name, entry in environments.items() if entry and name not in required and name[0] != "."),
    ]
    lines = ["| environment | | seconds | tests | proved |", "|---|---|---:|---|---|"]
    lines += [row(name, environments.get(name, {})) for name in named]
    left_out = [
        line
        for name in named
        for path in report_paths(environments.get(name, {}))
        for line in not_run(name, path)
    ]
    others = [name for name in environments if name not in named and not name.startswith(".pkg")]
    if others:
        left_out.append(f"- not asked for, and so not run: {', '.join(others)}")
    return "\n".join([*lines, *(["", "What did not run:", "", *left_out] if left_out else [])])


def row(name: str, entry: dict[str, Any]) -> str:
    outcome = entry.get("result", {})
    word = state(outcome) if entry else "not run"
    reports = [report for path in report_paths(entry) if (report := read_report(path))]
    counts = Counter(test["outcome"] for report in reports for test in report["tests"].values())
    said = ", ".join(f"{counts[word]} {word}" for word in ("passed", "failed", "skipped") if counts[word])
    return f"| {name} | {word} | {outcome.get('duration') or 0:.0f} | {said} | {proof(entry)} |"


def state(outcome: dict[str, Any]) -> str:
    """In a word. To tox, an environment that was skipped is a success."""
    return "skipped" if outcome.get("skipped") else "ok" if outcome.get("success") else "NOT OK"


def proof(entry: dict[str, Any]) -> str:
    """What tools/prove_build.py said in that environment."""
    lines = [line for command in entry.get("test", []) for line in command.get("output", "").splitlines()]
    said = [line.split(": ", 1)[1] for line in lines if line.startswith("proved ") and ": " in line]
    return said[0] if said else ""


def not_run(name: str, path: Path) -> Iterator[str]:
    report = read_report(path)
    if report is None:
        return
    for why, number in Counter(test.get("reason", "") for test in skipped(report)).items():
        yield f"- {name}: {number} skipped: {why}"
    by_marker = Counter(marker for markers in report["deselected"].values() for marker in markers)
    for marker, number in sorted(by_marker.items()):
        if not path.stem.endswith(marker):
            yield f"- {name}: {number} marked {marker}, not picked"


def skipped(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [test for test in report["tests"].values() if test["outcome"] == "skipped"]


# -- where it stands -------------------------------------------------------------------------------------------------


def report_paths(entry: dict[str, Any]) -> list[Path]:
    """The files that the environment's pytest commands were told to write. tox empties their folder before each run."""
    found = []
    for command in entry.get("test", []):
        words = command.get("command", [])
        found += [Path(after) for word, after in pairwise(words) if word == "--ran"]
    return found


def read_report(path: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, json.JSONDecodeError):
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
