"""Cards of a later version, and what metrics.csv says that no trace does: rates, and a loss that is no number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load, save
from torch import nn

from ambidex.cardfile import FORMAT
from ambidex.compare import folder, tracefile
from ambidex.compare.arithmetic import Noisy
from ambidex.compare.command import compare
from ambidex.compare.judge import Verdict
from ambidex.compare.report import text
from ambidex.compare.tracefile import Trace
from ambidex.errors import Exit, Problems

HEADER = "step,tokens,loss,val_loss,lr,grad_norm,seconds,tokens_per_second\n"


def a_run(
    path: Path, rows: list[str] | None, *, steps: int = 4, form: Any = FORMAT, trace: bool = False
) -> Path:
    path.mkdir()
    card = {"format": form, "config": {"steps": steps}, "data": {"hash": "x"}, "precision": "fp32"}
    (path / "card.json").write_text(json.dumps(card), "utf-8")
    if rows is not None:
        (path / "metrics.csv").write_text(HEADER + "".join(rows), "utf-8")
    if trace:
        (path / "trace.safetensors").write_bytes(tracefile.write(Trace("a", "a", "fp32")))
    return path


def row(step: int, loss: str = "3.25", rate: str = "0.5", norm: str = "1.5") -> str:
    return f"{step},{step},{loss},,{rate},{norm},1.0,1.0\n"


def four(**changed: str) -> list[str]:
    """Of four steps, the third with something else."""
    return [row(step, **(changed if step == 3 else {})) for step in range(1, 5)]


def of_two(tmp_path: Path, before: list[str] | None, after: list[str] | None) -> Verdict:
    return compare([a_run(tmp_path / "a", before), a_run(tmp_path / "b", after)])[0]


@pytest.mark.parametrize("form", [FORMAT + 1, 99])
def test_a_card_of_a_later_format_is_not_read_as_if_it_were_ours(form: int, tmp_path: Path) -> None:
    with pytest.raises(Problems, match=f"format {form}") as caught:
        compare([a_run(tmp_path / "a", four()), a_run(tmp_path / "b", four(), form=form)])
    assert caught.value.exit_code == Exit.DATA
    assert "--upgrade" in caught.value.problems[0].fix


@pytest.mark.parametrize("form", ["1", 1.5, None, True, 0, -1, [1]])
def test_a_format_that_is_no_number_of_one_is_refused(form: Any, tmp_path: Path) -> None:
    with pytest.raises(Problems, match="format"):
        compare([a_run(tmp_path / "a", four()), a_run(tmp_path / "b", four(), form=form)])


def test_a_trace_of_a_later_format_is_no_damaged_one(tmp_path: Path) -> None:
    arrays = load(tracefile.write(Trace("a", "a", "fp32")))
    index = json.loads(arrays["index"].tobytes()) | {"format": 2}
    arrays["index"] = torch.frombuffer(bytearray(json.dumps(index).encode()), dtype=torch.uint8).numpy()
    (tmp_path / "trace.safetensors").write_bytes(save(arrays))
    with pytest.raises(Problems, match="newer format") as caught:
        tracefile.read(tmp_path / "trace.safetensors")
    assert "--upgrade" in caught.value.problems[0].fix


@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_loss_that_is_a_number_in_one_run_only_is_a_difference(loss: str, tmp_path: Path) -> None:
    verdict = of_two(tmp_path, four(), four(loss=loss))
    assert verdict.same is False
    assert verdict.first is not None
    assert (verdict.first.stage, verdict.first.step) == ("loss", 2)
    assert loss in text([verdict])


def test_steps_whose_loss_is_no_number_are_steps_and_those_behind_them_are_compared(tmp_path: Path) -> None:
    verdict = of_two(tmp_path, four(loss="nan", norm="inf"), four(loss="nan", norm="inf"))
    assert verdict.same is True
    assert "over 4 steps" in verdict.notes[-1]
    assert not any("of its 4 steps" in note for note in verdict.notes)
    late = [*four(loss="nan")[:3], row(4, rate="0.25")]
    (tmp_path / "late").mkdir()
    first = of_two(tmp_path / "late", four(loss="nan"), late).first
    assert first is not None
    assert (first.stage, first.step) == ("schedule", 3)


def test_rates_are_compared_step_by_step_where_a_line_is_missing(tmp_path: Path) -> None:
    verdict = of_two(tmp_path, four(), [row(2), row(3, rate="0.25"), row(4)])
    assert verdict.first is not None
    assert (verdict.first.stage, verdict.first.step) == ("schedule", 2)


def test_rates_that_nobody_wrote_down_are_said_not_to_be_compared(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a", four(), trace=True), a_run(tmp_path / "b", None, trace=True)]
    for one in runs:  # of a trace with something in it
        table = tracefile.Table.of({tracefile.Key(0, "loss", "loss"): _of_one(3.0)})
        trace = Trace("a", "a", "fp32", {tracefile.Leg("free", 0, "fp32"): table})
        (one / "trace.safetensors").write_bytes(tracefile.write(trace))
    verdict = compare(runs)[0]
    assert verdict.same is True
    assert [note for note in verdict.notes if "learning rates" in note] == [
        "b has no metrics.csv that can be read, so the learning rates of its steps were not compared."
    ]


def _of_one(number: float) -> Any:
    import numpy as np

    from ambidex.compare.fingerprint import fingerprint

    return fingerprint(np.array([number]))


def test_a_name_with_a_line_break_makes_no_line_of_its_own(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "a", four()), a_run(tmp_path / "b\nerror: c", four())]
    assert "\nerror" not in text(compare(runs))


def test_rows_up_to_a_rate_that_is_no_number_are_read(tmp_path: Path) -> None:
    rows = folder.read_metrics(a_run(tmp_path / "a", four(rate="nan")) / "metrics.csv")
    assert [one.step for one in rows] == [1, 2]


def test_the_noise_on_a_convolutions_bias_gradient_is_that_of_a_plain_sum() -> None:
    """Where channels come last torch adds it up in fp32, one after the other: more than half a unit in the last place."""

    x, upstream = torch.linspace(-3, 3, 3200).view(8, 1, 20, 20), torch.linspace(0, 5000, 5184).cos()

    def gradients(seed: int, *, sums: bool) -> list[torch.Tensor]:
        layer = nn.Conv2d(1, 2, 3)
        with torch.no_grad():
            for weight in layer.parameters():
                weight.copy_(torch.linspace(-0.5, 0.7, weight.numel()).view(weight.shape))
        with Noisy(seed, sums=sums):
            layer(x).backward(upstream.view(8, 2, 18, 18))
        return [weight.grad for weight in layer.parameters() if weight.grad is not None]

    def apart(*, sums: bool) -> list[float]:
        pairs = zip(gradients(1, sums=sums), gradients(2, sums=sums))
        return [float((one - other).norm()) for one, other in pairs]

    (weight, bias), (usual_weight, usual_bias) = apart(sums=True), apart(sums=False)
    assert bias > 10 * usual_bias
    assert weight < 3 * usual_weight
