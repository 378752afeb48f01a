"""Runs to export: each tokenizer, tied and untied, heads shared and not, another base of the rotary angles."""

from __future__ import annotations

from pathlib import Path

import pytest

import ambidex
from exported import KINDS, LINES
from tiny import TINY


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "lines.txt"
    path.write_text("".join(LINES.format(n, n % 7) for n in range(400)), "utf-8", newline="")
    return path


@pytest.fixture(scope="session")
def trained_runs(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIDEX_CACHE", str(folder / "cache"))
        for kind, settings in KINDS.items():
            words = {**TINY, "data": [str(text)], "precision": "fp32", "out": str(folder / kind), **settings}
            ambidex.train(**{**words, "width": 32, "feed_forward": 48})
    return {kind: folder / kind for kind in KINDS}
