"""Memory: the plan's parts, what fits, and what is said when it does not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ambidex import cli, config, plan
from ambidex.engine import Device
from ambidex.errors import Exit
from ambidex.trainer import Rhythm
from tiny import TINY, flags

SHAPE = {**TINY, "batch_size": 12}


def planned(**settings: object) -> tuple[config.Settings, plan.Memory]:
    found = config.resolve({**SHAPE, **settings}, environment={}).settings
    return found, plan.memory(found, plan.shape_of(found, 256), "fp32")


def test_activations_and_loss_grow_with_the_micro_batch_and_the_rest_does_not() -> None:
    one, two = planned(micro_batch_size=3)[1].parts, planned(micro_batch_size=6)[1].parts
    assert {part for part in one if two[part] != one[part]} == {"activations", "loss"}
    assert two["loss"] == 2 * one["loss"]
    assert two["activations"] == pytest.approx(2 * one["activations"], abs=2)


def test_a_table_of_groups_of_tokens_counts_with_its_gradient_its_moments_and_what_is_looked_up() -> None:
    (_, without), (settings, with_groups) = planned(), planned(ngrams=3, ngram_rows=1000)
    table = 4 * 2 * 1000 * settings.width
    more = {part: with_groups.parts[part] - without.parts[part] for part in without.parts}
    looked_up = settings.batch_size * settings.context * 2 * (8 * settings.width + 8)
    assert more == {
        "weights": table,
        "gradients": table,
        "optimizer": 2 * table,
        "activations": looked_up,
        "loss": 0,
    }


def test_muon_keeps_one_moment_for_the_matrices_of_the_blocks() -> None:
    from ambidex.model import LanguageModel

    settings, memory = planned(optimizer="muon")
    model = LanguageModel(plan.shape_of(settings, 256))
    inner = sum(p.numel() for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n)
    every = sum(p.numel() for p in model.parameters())
    assert memory.parts["optimizer"] == 4 * (inner + 2 * (every - inner))


def test_the_micro_batch_that_is_advised_divides_fits_and_is_the_largest() -> None:
    settings, _ = planned()
    shape = plan.shape_of(settings, 256)
    free = int(planned(micro_batch_size=4)[1].total * plan.SPARE) + 1
    assert plan.fitting_micro_batch(settings, shape, "fp32", free, below=12) == 4
    assert plan.fitting_micro_batch(settings, shape, "fp32", free - 2, below=12) == 3
    assert plan.fitting_micro_batch(settings, shape, "fp32", 10**12, below=12) == 6
    assert plan.fitting_micro_batch(settings, shape, "fp32", 1000, below=12) is None
    assert "no micro-batch size" in plan.less_memory(settings, shape, "fp32", 1000)


def test_out_of_memory_ends_in_6_with_the_size_that_fits_and_nothing_lost(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The allocator's refusal is injected at step 5, after a checkpoint at step 3."""
    from ambidex.trainer import Trainer

    free = int(planned(micro_batch_size=4)[1].total * plan.SPARE) + 1
    monkeypatch.setattr(Device, "free_bytes", lambda self: free)
    real = Trainer.update

    def refusing(self: Trainer) -> object:
        if self.step == 4:
            raise torch.OutOfMemoryError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        return real(self)

    monkeypatch.setattr(Trainer, "update", refusing)
    out = tmp_path / "run"
    words = flags(**{**SHAPE, "precision": "fp32", "data": [str(story)], "out": str(out)})
    assert cli.main(["train", *words]) == Exit.OUT_OF_MEMORY
    shown = capsys.readouterr()
    assert "do: --micro-batch-size 4\n" in shown.err
    assert "more than is free" in shown.out  # it was said before it began
    assert "--micro-batch-size 4" in shown.out
    assert (out / "checkpoints" / "step-000003" / "manifest.json").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space")
def test_a_limited_address_space_ends_in_6_with_a_size_that_then_trains(story: Path, tmp_path: Path) -> None:
    big = {**TINY, "width": 128, "context": 256, "batch_size": 512, "steps": 1, "precision": "fp32",
           "sample_tokens": 0, "data": [str(story)]}  # fmt: skip

    def limited(out: str, **more: object) -> subprocess.CompletedProcess[str]:
        room = 900 << 20  # beside what the interpreter and torch take
        code = ("import resource, sys\nfrom ambidex import cli, launch\nimport matplotlib.figure\n"
                "taken = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
                f"resource.setrlimit(resource.RLIMIT_AS, (taken + {room},) * 2)\n"
                "sys.exit(cli.main(sys.argv[1:]))")  # fmt: skip
        words = flags(**{**big, "out": str(tmp_path / out), **more})
        return subprocess.run(
            [sys.executable, "-c", code, "train", *words],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    failed = limited("first")
    assert failed.returncode == Exit.OUT_OF_MEMORY, failed.stdout + failed.stderr
    assert "Traceback" not in failed.stderr
    assert "more than is free" in failed.stdout
    size = re.search(r"do: --micro-batch-size (\d+)", failed.stderr)
    assert size is not None, failed.stderr
    trained = limited("second", micro_batch_size=size[1])
    assert trained.returncode == 0, trained.stdout + trained.stderr


def test_a_dry_run_builds_no_model_and_shows_every_part(
    story: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr("ambidex.launch.LanguageModel")
    words = flags(**{**TINY, "data": [str(story)], "layers": 900, "width": 8192})
    assert cli.main(["train", *words, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for part in ("embedding", "attention", "feed-forward", "weights", "gradients", "optimizer", "activations", "loss",
                 "free", "operations a token", "an estimate", "more than is free", "flag --layers", "preset nano"):  # fmt: skip
        assert part in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("steps", "every", "limit"), [(1, 0, 0), (12, 0, 64), (25, 4, 64), (8, 4, 0), (7, 100, 64)]
)
def test_the_estimate_counts_the_tokens_that_a_run_evaluates(steps: int, every: int, limit: int) -> None:
    settings = config.Settings(steps=steps, evaluate_every=every, evaluation_tokens=limit)
    rhythm, held_out = Rhythm.of(settings), 1000
    read = sum(held_out if step == steps else min(limit or held_out, held_out)
               for step in range(1, steps + 1) if rhythm.evaluates(step))  # fmt: skip
    assert plan.evaluated_tokens(settings, held_out) == read
