"""The losses of the same training with other roundings: as many as asked for, near the run's own, and no bit of it changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ambidex.compare import tracefile
from ambidex.compare.curves import rounding_band
from ambidex.compare.folder import read
from ambidex.rows import METRICS, read_metrics


@pytest.mark.parametrize(("precision", "near"), [("fp32", 1e-4), ("bf16", 0.2)])
def test_the_band_is_measured_over_the_steps_asked_for(
    train: Callable[..., Path], precision: str, near: float
) -> None:
    plain = train(steps=4, evaluate_every=4, precision=precision)
    run = train(steps=4, evaluate_every=4, precision=precision, trace_band=3)
    rows = read_metrics(run / METRICS)
    assert [row.loss for row in rows] == [row.loss for row in read_metrics(plain / METRICS)]
    losses = tracefile.read(run / tracefile.TRACE).losses
    assert [len(leg) for leg in losses.values()] == [3, 3]
    band = rounding_band(read(run), rows)
    assert [step for step, _, _ in band] == [1, 2, 3]
    assert all(0 < widest < near for _, _, widest in band)
    assert not tracefile.read(plain / tracefile.TRACE).losses
