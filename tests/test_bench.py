"""`ambidex bench` measures what it says, and the share of peak is the count of products over a measured rate."""

from __future__ import annotations

import json

import pytest
import torch

from ambidex import bench, cli, config, plan
from ambidex.engine import Device
from ambidex.errors import Problems

TINY = {
    "layers": 2,
    "width": 32,
    "heads": 2,
    "kv_heads": 1,
    "feed_forward": 64,
    "context": 16,
    "batch_size": 4,
}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One repetition of each measurement, on a model that takes no time."""
    settings = config.resolve({**TINY, "precision": "fp32"})
    monkeypatch.setattr(bench.config, "resolve", lambda *_: settings)
    monkeypatch.setattr(bench, "fastest", lambda do: do() is None or 1e-3)
    monkeypatch.setattr(bench, "copy_rate", lambda: 1e10)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_report_in_json_has_ceilings_parts_and_a_share(
    quick: None, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.run("nano", precision, threads=1, steps=2, as_json=True) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["precision"] == precision
    assert {row["product"] for row in report["ceilings_gflops"]} >= {"down", "head"}
    assert set(report["step"]["parts"]) == set(bench.PARTS)
    assert report["share_of_peak"] > 0
    assert sum(report["step"]["parts"].values()) == pytest.approx(report["step"]["seconds"], rel=0.5)


def test_the_report_in_words_names_every_part_of_a_step(
    quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run("nano", "fp32", threads=1, steps=1, as_json=False)
    printed = capsys.readouterr().out
    assert all(part in printed for part in (*bench.PARTS, "of the best one above"))


def test_the_products_of_a_step_add_up_to_the_count_without_attention() -> None:
    settings = config.resolve({**TINY, "vocabulary_size": 512, "tokenizer": "bpe"}).settings
    shape = plan.shape_of(settings, 512)
    block, head = 0.0, 0.0
    for name, (rows, inner, outer) in bench.product_shapes(settings, shape).items():
        if name == "head":
            head = 2.0 * rows * inner * outer
        else:
            block += 2.0 * rows * inner * outer
    tokens = settings.batch_size * settings.context
    scores = 2 * shape.layers * shape.width * shape.context * tokens
    assert 3 * (shape.layers * block + head + scores) == shape.operations_per_token() * tokens


def test_it_says_so_when_the_machine_disagrees_with_the_rule() -> None:
    slow_bf16 = [{"bf16": 50.0, "fp32": 100.0, "fp32 by oneDNN": 100.0}]
    assert "--precision fp32 may be faster" in bench.disagreement(slow_bf16, "bf16")
    assert "--precision fp32 may be faster" not in bench.disagreement(slow_bf16, "fp32")


def test_an_unknown_preset_is_an_error_in_words() -> None:
    with pytest.raises(Problems, match="no such preset"):
        bench.run("nanno", "auto", threads=1, steps=1, as_json=True)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_rate_of_a_product_is_kept_for_the_share_of_peak(precision: str) -> None:
    device = Device("cpu", precision, threads=1)
    assert device.product_rate == 0.0
    assert device.matmul_rate(64, 32, 16, seconds=0.01) == device.product_rate > 0
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("words", ["--to-loss nan --data x.txt", "--steps 0", "--rounds -1", "--threads -1"])
def test_a_number_that_cannot_be_is_exit_2_before_anything_runs(words, capsys):
    assert cli.main(["bench", *words.split()]) == 2
    assert "has a value that it cannot have" in capsys.readouterr().err
