"""The command that makes the example page: of any runs, with no path of the machine on it, from any folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from reading import is_harmless, words
from test_page import written

TOOL = Path(__file__).parents[2] / "tools" / "compare_example.py"
EXAMPLE = TOOL.parents[1] / "docs" / "compare-example.html"


def test_the_page_names_runs_from_the_folder_that_holds_them(tmp_path: Path) -> None:
    runs = [
        written(tmp_path / "runs" / "cpu" / "one"),
        written(tmp_path / "runs" / "bridge" / "two", off=1e-7),
    ]
    command = [sys.executable, str(TOOL), *map(str, runs), "--to", str(tmp_path / "out"), "--no-picture"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    page = tmp_path / "out" / "compare-example.html"
    assert (found.returncode, found.stderr) == (0, f"written  {page}\n")
    text = page.read_text("utf-8")
    assert str(tmp_path) not in text
    assert f"ambidex compare {Path('cpu', 'one')} {Path('bridge', 'two')}" in words(is_harmless(text))


def test_the_example_in_the_docs_is_a_page_of_this_kind() -> None:
    text = EXAMPLE.read_text("utf-8")
    assert "are the same" in words(is_harmless(text))
    assert "/home/" not in text
    assert "/tmp/" not in text
    assert len(text) < 500_000
