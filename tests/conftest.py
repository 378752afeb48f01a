"""What every test starts from: no settings from outside, a cache of its own, one torch thread, its GPU if it needs one."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path

import pytest

pytest_plugins = ["ran_report"]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `gpu` is skipped where there is none, and fails where REQUIRE_GPU=1 says that there is one."""
    if item.get_closest_marker("gpu") and (missing := no_gpu()):
        if os.environ.get("REQUIRE_GPU") == "1":
            pytest.fail(f"REQUIRE_GPU=1, and {missing}", pytrace=False)
        pytest.skip(missing)


@functools.cache
def no_gpu() -> str:
    """Why this torch, or an engine that is to run an image, has no GPU here; empty where it has one."""
    if os.environ.get("AMBIDEX_IMAGE"):
        sys.path.insert(0, str(Path(__file__).parents[1] / "docker"))
        import check

        return "; ".join(check.gpu_problems())
    try:
        import torch
    except ImportError:
        return "there is no torch here"
    return "" if torch.cuda.is_available() else f"torch {torch.__version__} sees no GPU here"


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
