"""The four lessons, run as a user types them, from their folder."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ambidex import config, plan

EXAMPLES = Path(__file__).parents[1] / "examples"
OWN = ("cpu_demo.py", "train_simple.py", "cpu_training_guide.py")


def typed(*words: str, code: int = 0) -> str:
    """What ``python WORDS`` prints when typed in the folder of the examples."""
    done = subprocess.run(
        [sys.executable, *words], cwd=EXAMPLES, capture_output=True, timeout=200, check=False,
        # One thread and short samples: other tests run beside this one.
        env={**os.environ, "PYTHONIOENCODING": "utf-8", "AMBIDEX_THREADS": "1", "AMBIDEX_SAMPLE_TOKENS": "8"},
        encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_demo_names_the_machine_and_every_tensor_lies_on_the_cpu() -> None:
    shown = typed("cpu_demo.py")
    assert re.search(r"float32 products: +[\d,]*\d\.\d GFLOP/s", shown)
    assert "all tensors on: cpu\n" in shown
    before, after = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", shown)[0])
    assert after < before / 10


def test_the_simple_transformer_learns_visibly() -> None:
    shown = typed("train_simple.py", "--steps", "40")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+),", shown)]
    assert losses[0] > 3.5
    assert losses[-1] < 3.0
    assert shown.rindex("trained, it writes:") > shown.index("untrained, it writes")


def test_the_guide_shows_what_each_way_stops_and_what_goes_past_it() -> None:
    import torch

    shown = typed("cpu_training_guide.py")
    assert ("STAND-IN" in shown.splitlines()[0]) == (not torch.cuda.is_available())
    parts = re.split(r"\n(?=\d\. |The guard|All four)", shown)
    reached = {part[:1]: part.count("REACHED THE GPU") for part in parts[1:6]}
    assert reached == {"0": 3, "1": 0, "2": 2, "3": 2, "4": 2}
    guard, all_four = parts[6], parts[7]
    assert guard.count("stopped: error: CUDA was asked for while the CPU is forced.") == 2
    assert "REACHED" not in guard
    for way in (
        "--device cpu",
        "TOML",
        "AMBIDEX_DEVICE=cpu",
        "CUDA_VISIBLE_DEVICES",
        "is_available overridden",
    ):
        assert way in all_four.splitlines()[1]


def test_the_full_training_is_on_the_cpu_by_force_and_leaves_a_run(story: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shown = typed("train_cpu.py", "--quick", "--steps", "2", "--data", str(story), "--out", str(run))
    assert shown.startswith('device   cpu: forced by the argument device="cpu"')
    assert "computed on cpu, forced by" in shown
    assert (run / "checkpoints" / "step-000002" / "manifest.json").exists()
    again = typed("train_cpu.py", "--quick", "--steps", "2", "--data", str(story), "--out", str(run), code=2)
    assert "holds a run already" in again


def test_the_full_training_has_45_6_million_parameters_by_default() -> None:
    spec = importlib.util.spec_from_file_location("train_cpu", EXAMPLES / "train_cpu.py")
    assert spec is not None
    assert spec.loader is not None
    lesson = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lesson)
    settings = config.resolve(lesson.FULL, environment={}).settings
    assert sum(plan.shape_of(settings, settings.vocabulary_size).parameters().values()) == 45_626_240


@pytest.mark.parametrize("name", OWN[:2])
def test_the_first_lessons_need_torch_and_the_standard_library_only(name: str) -> None:
    tree = ast.parse((EXAMPLES / name).read_text("utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    others = {full.split(".")[0] for full in imported} - set(sys.stdlib_module_names)
    assert others == {"torch"}
