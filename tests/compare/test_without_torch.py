"""`ambidex compare` judges where there is no torch, and nothing else of the training's needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from made import CARD, FREE, table

from ambidex.compare import tracefile
from ambidex.compare.tracefile import Key, Trace

WITHOUT = """
import sys
for name in ("torch", "pydantic", "tokenizers", "matplotlib", "filelock", "tqdm"):
    sys.modules[name] = None  # importing it raises ImportError
from ambidex.cli import main
sys.exit(main(sys.argv[1:]))
"""


def write_run(path: Path, changed: dict[Key, float] | None = None) -> None:
    path.mkdir()
    (path / "card.json").write_text(json.dumps(CARD), "utf-8")
    trace = Trace(path.name, path.name, "fp32", {FREE: table(changed)})
    (path / "trace.safetensors").write_bytes(tracefile.write(trace))


def compare(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, "compare", *words], capture_output=True, text=True, check=False
    )


def test_traces_are_judged_without_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b")
    write_run(tmp_path / "c", {Key(0, "output", "model.layers.0.mlp"): 50.0})
    same = compare(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (same.returncode, same.stderr) == (0, "")
    different = compare(str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "c"), "--json")
    assert different.returncode == 1
    pairs = json.loads(different.stdout)["pairs"]
    assert [pair["same"] for pair in pairs] == [True, False]
    assert pairs[1]["first"]["module"] == "model.layers.0.mlp"


def test_every_folder_that_is_no_run_is_named_at_once(tmp_path: Path) -> None:
    found = compare(str(tmp_path / "nothing"), str(tmp_path / "nowhere"))
    assert found.returncode == 3
    assert "nothing" in found.stderr
    assert "nowhere" in found.stderr
    assert "Traceback" not in found.stderr
