"""A step that is replayed as a CUDA graph is the step that it was recorded from, in every bit."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ambidex import config, launch
from ambidex.engine import Device
from ambidex.replay import Recording, Replayed
from ambidex.text.tokens import prepare
from ambidex.trainer import Trainer
from tiny import TINY

STEPS = 6


class Line:
    """Gradients of sums of ``x`` that a "graph" writes over and over into the same place, as a real one does."""

    def __init__(self) -> None:
        self.used, self.unused = torch.zeros(3), torch.zeros(2)
        self.weights = [torch.nn.Parameter(self.used), torch.nn.Parameter(self.unused)]
        self.replayed = Replayed(self.learn, self.weights)

    def learn(self, inputs: Tensor, targets: Tensor, predicted: int, scale: float | Tensor) -> Tensor:
        loss = (self.weights[0] * inputs.float().sum()).sum() / predicted
        (loss * scale).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def record(self, inputs: Tensor, predicted: int) -> None:
        given, scale, made = torch.zeros_like(inputs), torch.zeros(()), torch.zeros(3)

        def replay() -> None:
            made.copy_((given.float().sum() / predicted * scale).expand(3))

        recording = Recording(SimpleNamespace(replay=replay), given, torch.zeros_like(inputs), scale,  # type: ignore[arg-type]
                              torch.zeros(()), [made, None])  # fmt: skip
        self.replayed._recordings[(tuple(inputs.shape), predicted)] = recording


@pytest.mark.parametrize("sizes", [[2], [2, 2], [2, 2, 2], [2, 1], [1, 2, 1, 2]])
def test_micro_batches_that_are_replayed_add_up_as_those_that_are_not(sizes: list[int]) -> None:
    line, plain = Line(), Line()
    batches = [torch.arange(1 + number, 1 + number + size).view(size, 1) for number, size in enumerate(sizes)]
    for size in set(sizes):
        line.record(torch.zeros(size, 1, dtype=torch.int64), 4)
    for step in range(3):
        for inputs in batches:
            line.replayed(inputs + step, inputs, 4, 8.0)
            plain.learn(inputs + step, inputs, 4, 8.0)
        assert torch.equal(line.weights[0].grad, plain.weights[0].grad)
        assert line.weights[1].grad is None
        for weight in (*line.weights, *plain.weights):
            weight.grad = None


def test_what_cannot_be_recorded_is_done_as_it_is_and_says_why() -> None:
    line, plain = Line(), Line()
    line.replayed.why_not = "an operation"
    inputs = torch.ones(2, 1, dtype=torch.int64)
    for _ in range(2):
        line.replayed(inputs, inputs, 4, 1.0)
        plain.learn(inputs, inputs, 4, 1.0)
    assert torch.equal(line.weights[0].grad, plain.weights[0].grad)


def test_on_a_cpu_nothing_is_recorded() -> None:
    line = Line()
    assert Device("cpu", "fp32", 1).replayed(line.learn, line.weights) == line.learn


@pytest.mark.parametrize("told", [{"replay": False}, {"trace": True}])
def test_a_step_is_started_kernel_by_kernel_where_that_is_asked_for_and_where_a_trace_is_written(
    told: dict[str, Any], story: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(Device, "replayed", lambda device, learn, weights: asked.append(learn) or learn)
    built(story, tmp_path, "cpu", "fp32")
    assert len(asked) == 1
    built(story, tmp_path, "cpu", "fp32", **told)
    assert len(asked) == 1


def built(story: Any, cache: Any, device: str, precision: str, **settings: Any) -> Trainer:
    given = {**TINY, "data": [str(story)], "precision": precision, "device": device, **settings}
    s = config.resolve(given, environment={}).settings
    tokens = prepare(s.data, tokenizer="byte", vocabulary_size=256, field="text",
                     validation_fraction=s.validation_fraction, cache=cache, progress=False)  # fmt: skip
    return launch.build(s, Device(device, precision, 1), tokens)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "muon"},
        {"micro_batch_size": 1},
        {"compile": True},
        {"clip": 0.01},
    ],
    ids=str,
)
def test_a_replayed_step_has_the_bits_of_one_whose_kernels_are_started_one_by_one(
    precision: str, settings: dict[str, Any], story: Any, tmp_path: Any
) -> None:
    started = built(story, tmp_path, "cuda:0", precision, replay=False, **settings)
    replayed = built(story, tmp_path, "cuda:0", precision, **settings)
    for _ in range(STEPS):
        one, other = started.update(), replayed.update()
        assert (one.loss, one.grad_norm) == (other.loss, other.grad_norm)
    assert isinstance(replayed.learn, Replayed)
    assert replayed.learn.why_not == ""
    assert started.evaluate() == replayed.evaluate()
    for (name, one), other in zip(started.model.named_parameters(), replayed.model.parameters()):
        assert torch.equal(one, other), name


@pytest.mark.gpu
def test_a_graph_that_leaves_no_memory_for_an_evaluation_is_not_kept(
    story: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = built(story, tmp_path, "cuda:0", "bf16", replay=False)
    replayed = built(story, tmp_path, "cuda:0", "bf16")
    left = iter([100 << 20, 40 << 20])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (next(left), 80 << 30))
    for _ in range(STEPS):
        assert started.update().loss == replayed.update().loss
    assert isinstance(replayed.learn, Replayed)
    assert "60 MB" in replayed.learn.why_not
