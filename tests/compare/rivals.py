"""What others would say of the same cases: loss curves, and `torch.testing.assert_close` with its defaults.

assert_close gets whole tensors of the first two steps, in the order in which a step makes them; the first that fails
names stage and module, as generously as can be: with the step's order known, and with every module hooked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ambidex.compare.folder import read_metrics
from ambidex.compare.recorder import Recorder
from ambidex.compare.tracing import Tracing

FILE = "rival.pt"
STEPS = (0, 1)
STAGE = {"tokens": "data", "targets": "data", "input": "forward", "output": "forward", "loss": "loss",
         "output_gradient": "backward", "input_gradient": "backward", "own_gradient": "backward", "gradient": "backward", "norm": "clip",
         "clipped": "clip", "momentum": "moments", "exp_avg": "moments", "exp_avg_sq": "moments", "weight": "update"}  # fmt: skip


@contextmanager
def watching(out: Path) -> Iterator[None]:
    """Keep the whole tensors of the first two steps of the training itself, in ``out``."""
    kept: dict[tuple[int, str, str], list[torch.Tensor]] = {}
    account, whole, stepped = Recorder.account, Recorder._whole, Recorder.stepped
    made = Tracing.__init__

    def made_too(self: Tracing, *a: Any) -> None:
        made(self, *a)
        self._recorder.of_the_run = True  # type: ignore[attr-defined]

    def wanted(recorder: Recorder) -> bool:
        return (
            recorder._step in STEPS and len(recorder.steps) > 2
        )  # shorter ones are legs beside the training

    def account_too(self: Recorder, kind: str, name: str, values: torch.Tensor, start: int) -> None:
        account(self, kind, name, values, start)
        if wanted(self):
            kept.setdefault((self._step, kind, name), []).append(values.detach().clone())

    def whole_too(self: Recorder, kind: str, name: str, values: Any) -> None:
        whole(self, kind, name, values)
        if wanted(self) and kind in STAGE and kind != "weight":
            kept[self._step, kind, name] = [torch.from_numpy(np.array(values))]

    def stepped_too(self: Recorder, norm: float | None) -> None:
        was = self.recording
        stepped(self, norm)
        if was and wanted(self):
            for name, weight in self.model.named_parameters():
                kept[self._step, "weight", name] = [weight.detach().clone()]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracing, "__init__", made_too)
        patch.setattr(Recorder, "account", account_too)
        patch.setattr(Recorder, "_whole", whole_too)
        patch.setattr(Recorder, "stepped", stepped_too)
        yield
    together = {
        key: torch.cat([part.reshape(-1) for part in parts]) for key, parts in kept.items()
    }  # backward's parts come in the order of the micro-batches too
    torch.save(together, out / FILE)


def judge(reference: Path, candidate: Path) -> dict[str, Any]:
    """For each rival whether it alarms, and what it names: stage and module, or nothing. ``differs``: any bit at all."""
    before, after = read_metrics(reference / "metrics.csv"), read_metrics(candidate / "metrics.csv")
    apart = max((abs(b.loss - a.loss) / abs(a.loss) for a, b in zip(before, after)), default=math.inf)
    short = len(after) < len(before)
    mine, theirs = torch.load(reference / FILE), torch.load(candidate / FILE)
    same = before == after and all(
        key in theirs and torch.equal(theirs[key], one) for key, one in mine.items()
    )
    return {
        "loss 1e-3": apart > 1e-3 or short,
        "loss 5 %": apart > 0.05 or short,
        "assert_close": _assert_close(mine, theirs),
        "differs": not same,
    }


def _assert_close(before: dict[Any, torch.Tensor], after: dict[Any, torch.Tensor]) -> list[str] | None:
    for key, wanted in before.items():
        found = after.get(key)
        if found is None:
            continue
        _step, kind, name = key
        try:
            torch.testing.assert_close(found, wanted, check_dtype=False)
        except AssertionError:
            parameter = kind in ("gradient", "clipped", "weight", "momentum", "exp_avg", "exp_avg_sq")
            return [STAGE[kind], name.rpartition(".")[0] if parameter else name]
    return None
