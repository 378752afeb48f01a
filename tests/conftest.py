"""What every test starts from: no settings from outside, a cache of its own, one torch thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("AMBIDEX_")]:
        monkeypatch.delenv(name)
    # One cache for a whole worker, so that a text is prepared once.
    monkeypatch.setenv("AMBIDEX_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def story(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text that can be learnt: every line counts on from the one before, so loss falls and has a shape."""
    lines = (f"line {number} is followed by line {number + 1}, as {number % 7} is by {(number + 1) % 7}.\n"
             for number in range(600))  # fmt: skip
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text("".join(lines), "utf-8", newline="\n")
    return path
