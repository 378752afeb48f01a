"""A step that is replayed as a CUDA graph is the step that it was recorded from, in every bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import ambidex
from ambidex import card as card_of
from ambidex import config, launch
from ambidex.engine import Device
from ambidex.replay import Recording, Replayed, first_line
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

    def learn(
        self, inputs: Tensor, targets: Tensor, predicted: int, scale: float | Tensor, among: object = None
    ) -> Tensor:
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


def test_a_step_whose_softmax_runs_over_a_part_of_the_vocabulary_is_never_replayed() -> None:
    line, plain = Line(), Line()
    inputs = torch.ones(2, 1, dtype=torch.int64)
    line.record(torch.zeros(2, 1, dtype=torch.int64), 4)
    line.replayed._recordings[((2, 1), 4)].graph.replay = lambda: pytest.fail("it was replayed")  # type: ignore[method-assign]
    line.replayed(inputs, inputs, 4, 1.0, "some tokens")
    plain.learn(inputs, inputs, 4, 1.0)
    assert torch.equal(line.weights[0].grad, plain.weights[0].grad)
    assert "sampled softmax" in line.replayed.why_not


def test_on_a_cpu_nothing_is_recorded() -> None:
    line = Line()
    assert Device("cpu", "fp32", 1).replayed(line.learn, line.weights) == line.learn


@pytest.mark.parametrize(
    "told", [{"replay": False}, {"trace": True}, {"trace_states": True}, {"from_trace": "a-run"}]
)
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
        {"ngrams": 3},
        {"grow_from": 1, "grow_at": 0.25},
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


def test_a_trial_that_fails_in_the_backward_pass_leaves_no_gradients(
    story: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
            raise RuntimeError("backend='inductor' raised:\nno headers")

    monkeypatch.setattr(torch, "compile", lambda model: lambda tokens: Breaks.apply(model(tokens)))
    monkeypatch.setenv("CXX", "true")
    plain = built(story, tmp_path, "cpu", "fp32", tied=False)
    tried = built(story, tmp_path, "cpu", "fp32", tied=False, compile=True)
    assert not tried.is_compiled()
    assert all(weight.grad is None for weight in tried.model.parameters())
    assert plain.update().grad_norm == tried.update().grad_norm


def test_the_card_says_whether_the_last_leg_was_compiled(
    story: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "run")
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    words = {**TINY, "data": [str(story)], "compile": True, "precision": "fp32"}
    ambidex.train(**words, out=out)
    card = json.loads((tmp_path / "run" / "card.json").read_text("utf-8"))
    assert card["compiled"] is False
    assert card_of.was_compiled(card) is False
    assert card_of.was_compiled({**card, "resumes": [{"compiled": True}]}) is True
    assert card_of.was_compiled({}) is None


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({"preset": "124m"}, False), ({"preset": "124m", "compile": True}, True), ({}, False)],
)
def test_a_presets_wish_to_compile_is_not_followed_on_a_cpu(given: dict[str, Any], wanted: bool) -> None:
    resolved = config.resolve({**given, "device": "cpu"}, environment={})
    assert launch.compiles(resolved, Device("cpu", "fp32", 1)) is wanted


def test_an_errors_first_line_is_one_that_says_something() -> None:
    assert first_line(RuntimeError("backend='inductor' raised:\n\n  no headers\nmore")) == "no headers"
    assert first_line(RuntimeError("")) == "RuntimeError"


class Cuda:
    """As much of torch.cuda as a recording calls, on a CPU: what a graph is asked to hold is computed once, at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        stream = SimpleNamespace(wait_stream=lambda other: None)
        fakes: dict[str, Any] = {
            "Stream": lambda device: stream,
            "current_stream": lambda device: stream,
            "stream": lambda entered: self.within("stream"),
            "device": lambda device: self.within(f"on {device}"),
            "graph": lambda graph, *, stream, capture_error_mode: self.within("capture"),
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: self.told.append("replay")),
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "mem_get_info": lambda: (1 << 30, 1 << 30),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        self.told.append(what)
        yield
        self.told.append(f"end of {what}")


def test_a_step_is_recorded_in_the_second_update_on_the_device_of_its_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, line = Cuda(monkeypatch), Line()
    inputs = torch.ones(2, 1, dtype=torch.int64)
    told = []
    for _ in range(3):
        for _ in range(2):
            line.replayed(inputs, inputs, 4, 1.0)
        told.append(list(cuda.told))
        cuda.told.clear()
        for weight in line.weights:
            weight.grad = None
    assert told[0] == []
    assert told[1] == ["on cpu", "stream", "end of stream", "stream", "capture", "end of capture", "end of stream",
                       "end of on cpu", "replay", "replay"]  # fmt: skip
    assert told[2] == ["replay", "replay"]


def test_a_capture_that_fails_leaves_the_stream_and_the_gradients_as_they_were(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda, line, plain = Cuda(monkeypatch), Line(), Line()

    @contextmanager
    def fails(graph: Any, *, stream: Any, capture_error_mode: str) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing")
        yield

    monkeypatch.setattr(torch.cuda, "graph", fails)
    inputs = torch.ones(2, 1, dtype=torch.int64)
    for _ in range(3):
        for weight in (*line.weights, *plain.weights):
            weight.grad = None
        line.replayed(inputs, inputs, 4, 1.0)
        plain.learn(inputs, inputs, 4, 1.0)
        assert torch.equal(line.weights[0].grad, plain.weights[0].grad)
    assert "not permitted" in line.replayed.why_not
    assert cuda.told.count("stream") == 2
