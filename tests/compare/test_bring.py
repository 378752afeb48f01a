"""Anybody's loop can be traced: a convolutional network, judged the same in another layout and different when broken."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import ambidex
from ambidex.compare import tracefile
from ambidex.compare.command import compare
from ambidex.errors import Exit, Problems

EXAMPLE = Path(__file__).parents[2] / "examples" / "bring_your_own.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("bring_your_own", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bring_your_own"] = module
    spec.loader.exec_module(module)
    return module


def test_the_example_is_the_same_in_another_layout_and_different_when_broken(
    example: Any, tmp_path: Path
) -> None:
    example.train(tmp_path / "plain")
    example.train(tmp_path / "other", layout=torch.channels_last)
    example.train(tmp_path / "broken", broken=True)
    same = compare([tmp_path / "plain", tmp_path / "other"])[0]
    assert same.same is True, same.first
    assert same.judged > 200
    first = compare([tmp_path / "plain", tmp_path / "broken"])[0].first
    assert first is not None
    assert (first.stage, first.module, first.step) == ("update", "2", 0)


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path, **options: Any) -> None:
    with ambidex.trace(model, optimizer, path, **options):
        for step in range(3):
            x = torch.full((4, 3), 0.5 + step)
            for half in x.split(2):
                (model(half).square().sum() / 4).backward()
            optimizer.step()
            optimizer.zero_grad()


def straight() -> nn.Linear:
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3) / 7 + 0.1)
        model.bias.fill_(0.3)
    return model


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.AdamW])
def test_any_optimizer_and_any_accumulation_is_recorded(kind: Any, tmp_path: Path) -> None:
    model = straight()
    loop(model, kind(model.parameters(), lr=0.01), tmp_path / "run")
    leg = next(iter(tracefile.read(tmp_path / "run" / "trace.safetensors").legs.values()))
    assert {key.step for key in leg.keys} == {0, 1, 2}
    assert {"weight", "gradient", "clipped", "update"} <= {key.kind for key in leg.keys}
    assert json.loads((tmp_path / "run" / "card.json").read_text("utf-8"))["weights_sha256"]


def test_without_another_leg_nothing_is_judged_and_that_is_said(tmp_path: Path) -> None:
    for name, nudge in (("a", 0.0), ("b", 1e-7)):
        model = straight()
        model.register_forward_hook(lambda _, __, output, by=nudge: output * (1 + by))
        loop(model, torch.optim.SGD(model.parameters(), lr=0.01), tmp_path / name)
    verdict = compare([tmp_path / "a", tmp_path / "b"])[0]
    assert verdict.same is None
    assert "leg=1" in verdict.problems[0].fix


def test_a_leg_without_a_first_one_is_refused(tmp_path: Path) -> None:
    model = straight()
    with pytest.raises(Problems, match="leg=0") as caught:
        loop(model, torch.optim.SGD(model.parameters(), lr=0.01), tmp_path / "run", leg=1)
    assert caught.value.exit_code == Exit.USAGE


def test_the_model_is_left_without_hooks(tmp_path: Path) -> None:
    model = straight()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    loop(model, optimizer, tmp_path / "run")
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not optimizer._optimizer_step_pre_hooks


class Two(nn.Module):
    """Gives a tuple, and is called twice in a forward; between the calls a ReLU writes into what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(3, 3, batch_first=True)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.inner(x.unsqueeze(1))
        y, last = self.inner(self.relu(y))
        return self.head(self.relu(y[:, 0] + last[0]))  # type: ignore[no-any-return]


def of_two(path: Path, change: Any = None, legs: int = 1) -> None:
    for leg in range(legs):
        model = Two()
        with torch.no_grad():
            for number, weight in enumerate(model.parameters()):
                weight.copy_(torch.linspace(-0.7, 0.9, weight.numel()).view(weight.shape) * (1 + number / 7))
        if change:
            change(model)
        loop(model, torch.optim.AdamW(model.parameters(), lr=0.01), path, leg=leg)


@pytest.mark.parametrize("module", ["inner", "relu", "head"])
def test_a_module_that_gives_a_tuple_writes_in_place_or_is_called_twice_is_named(
    module: str, tmp_path: Path
) -> None:
    def change(model: nn.Module) -> None:
        def wrong(_: Any, __: Any, found: Any) -> Any:
            return (found[0] * 1.0001, *found[1:]) if isinstance(found, tuple) else found * 1.0001

        model.get_submodule(module).register_forward_hook(wrong, prepend=True)

    of_two(tmp_path / "a", legs=4)
    of_two(tmp_path / "b", change)
    leg = next(iter(tracefile.read(tmp_path / "a" / "trace.safetensors").legs.values()))
    assert {"inner", "inner#2", "inner#3", "relu", "relu#2", "head"} <= {
        k.name for k in leg.keys if k.kind == "output"
    }
    first = compare([tmp_path / "a", tmp_path / "b"])[0].first
    assert first is not None
    assert (first.stage, first.module) == ("forward", module)


def test_a_weight_that_is_no_longer_trained_is_the_backwards(tmp_path: Path) -> None:
    of_two(tmp_path / "a", legs=4)
    of_two(tmp_path / "b", lambda model: model.head.weight.requires_grad_(False))
    first = compare([tmp_path / "a", tmp_path / "b"])[0].first
    assert first is not None
    assert (first.stage, first.module) == ("backward", "head")


def test_under_autocast_the_floor_is_that_of_bf16_and_other_micro_batches_are_the_same(
    tmp_path: Path,
) -> None:
    def autocast(model: nn.Module) -> None:
        forward = model.forward

        def low(x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return forward(x).float()  # type: ignore[no-any-return]

        model.forward = low

    def run(path: Path, parts: int, legs: int) -> None:
        for leg in range(legs):
            model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 4))
            with torch.no_grad():
                for weight in model.parameters():
                    weight.copy_(torch.linspace(-0.7, 0.9, weight.numel()).sin().view(weight.shape))
            autocast(model)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
            with ambidex.trace(model, optimizer, path, leg=leg, steps=(0, 1)):
                for step in range(2):
                    x = torch.linspace(-1, 1, 96).add(step).cos().view(16, 6)
                    for part in x.split(16 // parts):
                        (model(part).square().sum() / 16).backward()
                    optimizer.step()
                    optimizer.zero_grad()

    run(tmp_path / "a", 1, 4)
    run(tmp_path / "b", 4, 1)
    trace = tracefile.read(tmp_path / "a" / "trace.safetensors")
    assert trace.floor_legs == ["noise, 1", "noise, 2", "noise, 3"]
    verdict = compare([tmp_path / "a", tmp_path / "b"])[0]
    assert verdict.same is True, verdict.first
    assert verdict.worst is not None
    assert verdict.worst.ratio > 0


def test_an_evaluation_between_two_steps_is_no_part_of_either(tmp_path: Path) -> None:
    def run(path: Path, mode: Any) -> None:
        for leg in range(2):
            model = straight()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            with ambidex.trace(model, optimizer, path, leg=leg):
                for step in range(3):
                    if mode:
                        with mode():
                            model(torch.ones(7, 3))
                    model(torch.full((4, 3), 0.5 + step)).square().sum().backward()
                    optimizer.step()
                    optimizer.zero_grad()

    run(tmp_path / "plain", None)
    for mode in (torch.no_grad, torch.inference_mode):
        run(tmp_path / mode.__name__, mode)
        verdict = compare([tmp_path / "plain", tmp_path / mode.__name__])[0]
        assert verdict.same is True, verdict.first
        assert verdict.worst is not None
        assert verdict.worst.ratio == 0


def test_a_compiled_model_is_the_same_as_the_plain_one(tmp_path: Path) -> None:
    def run(path: Path, wrap: Any, legs: int) -> None:
        for leg in range(legs):
            model = wrap(straight())
            loop(model, torch.optim.SGD(model.parameters(), lr=0.01), path, leg=leg)

    def by_method(model: nn.Module) -> nn.Module:
        model.compile(backend="eager")
        return model

    run(tmp_path / "plain", lambda model: model, 4)
    for name, wrap in (
        ("wrapped", lambda model: torch.compile(model, backend="eager")),
        ("method", by_method),
    ):
        run(tmp_path / name, wrap, 1)
        verdict = compare([tmp_path / "plain", tmp_path / name])[0]
        assert verdict.same is True, verdict.first
        assert verdict.judged > 5


def test_a_loop_that_took_no_step_is_not_the_same_as_one_that_did(tmp_path: Path) -> None:
    model = straight()
    loop(model, torch.optim.SGD(model.parameters(), lr=0.01), tmp_path / "run")
    model = straight()
    with ambidex.trace(model, torch.optim.SGD(model.parameters(), lr=0.01), tmp_path / "none"):
        pass
    assert compare([tmp_path / "run", tmp_path / "none"])[0].same is None


# In a process of its own: what it guards against ends the process.
WRITES_TWICE = """
import sys, torch, ambidex
from torch import nn

class Twice(nn.Module):
    def forward(self, x):
        x.mul_(2)
        x[:, 0] = 0
        return x

model = nn.Sequential(nn.Linear(3, 4), Twice(), nn.Linear(4, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with ambidex.trace(model, optimizer, sys.argv[1]):
    for _ in range(2):
        model(torch.ones(2, 3)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
"""


def test_a_module_that_writes_twice_into_what_it_was_given_is_traced(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", WRITES_TWICE, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    leg = next(iter(tracefile.read(tmp_path / "run" / "trace.safetensors").legs.values()))
    assert {key.name for key in leg.keys if key.kind == "gradient"} >= {"0.weight", "2.weight"}


def test_a_loss_that_is_no_number_is_no_other_count_of_micro_batches(tmp_path: Path) -> None:
    for name, times in (("a", 1.0), ("b", float("nan"))):
        for leg in range(3):
            model = straight()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            with ambidex.trace(model, optimizer, tmp_path / name, leg=leg):
                for step in range(3):
                    loss = model(torch.full((4, 3), 0.5 + step)).square().mean()
                    (loss * (times if step == 1 else 1.0)).backward()
                    optimizer.step()
                    optimizer.zero_grad()
    verdict = compare([tmp_path / "a", tmp_path / "b"])[0]
    assert verdict.same is False
    assert verdict.first is not None
    assert verdict.first.step == 1
    assert verdict.first.stage != "accumulation"
