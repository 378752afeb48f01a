"""What a test run did and what it left out, as one JSON file: `pytest --ran FILE`. tools/ran.py reads it.

pytest calls a run green in which every GPU test was skipped, or was deselected by a slip in `-m`. So this writes down
each test that did not run, with its reason, and which markers it bears. A test that measures adds what it recorded as the
property `figures`; siege/container.py reads that.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

MARKERS = ("gpu", "containers", "slow", "wheels")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--ran", metavar="FILE", help="write what ran, what did not, and why, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--ran", None) or hasattr(config, "workerinput"):
        config.pluginmanager.register(Ran(config), "what-ran")


class Ran:
    """Listens to one session. Under xdist the workers know what was deselected, and the controller what came out."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.deselected: dict[str, list[str]] = {}
        self.tests: dict[str, dict[str, Any]] = {}

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        for item in items:
            self.deselected[item.nodeid] = markers(item)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        report.markers = markers(item)  # type: ignore[attr-defined]  # travels to xdist's controller with the report
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        entry = self.tests.setdefault(
            report.nodeid, {"outcome": "passed", "markers": getattr(report, "markers", [])}
        )
        entry |= {name: value for name, value in report.user_properties if name == "figures"}
        if report.outcome != "passed" and entry["outcome"] != "failed":
            entry["outcome"] = report.outcome
            if report.skipped:
                entry["reason"] = reason(report)

    # Only xdist asks for it, and it need not be installed.
    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.deselected |= getattr(node, "workeroutput", {}).get("deselected", {})

    def pytest_sessionfinish(self) -> None:
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["deselected"] = self.deselected
        elif path := self.config.getoption("--ran", None):
            file = Path(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(
                json.dumps({"tests": self.tests, "deselected": self.deselected}, indent=1), "utf-8"
            )


def markers(item: pytest.Item) -> list[str]:
    return [name for name in MARKERS if item.get_closest_marker(name)]


def reason(report: pytest.TestReport) -> str:
    """`Skipped: no GPU here` -> `no GPU here`; the reason of an expected failure."""
    if getattr(report, "wasxfail", None):
        return f"fails as expected: {report.wasxfail}"
    said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return said.removeprefix("Skipped: ")
