"""The notebook of the first lesson, every cell executed by a kernel of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "first_lesson.ipynb"
_LACKING = [name for name in ("nbclient", "nbformat", "ipykernel") if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(_LACKING), reason=f"not installed: {', '.join(_LACKING)}; tox run -e docs"
)


def test_every_cell_runs_and_shows_what_its_text_says(monkeypatch, story):
    import nbformat
    from nbclient import NotebookClient

    # The same cells on a smaller model and text: what is tested is the notebook, not the training.
    for name, value in {"WIDTH": 32, "HEADS": 2, "KV_HEADS": 1, "FEED_FORWARD": 64, "LAYERS": 2, "CONTEXT": 16,
                        "BATCH_SIZE": 4, "THREADS": 1, "DATA": story, "SAMPLE_TOKENS": 8}.items():  # fmt: skip
        monkeypatch.setenv(f"AMBIDEX_{name}", str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=200, kernel_name="python3").execute()
    kinds = {
        kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})
    }
    assert {"text/html", "image/png"} <= kinds
    shown = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "device   " in shown
    assert "with the lower rate" in shown


def test_the_notebook_is_kept_without_what_a_machine_answered():
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
