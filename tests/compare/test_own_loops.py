"""Loops of all kinds under ``ambidex.trace``: what is the same is called the same, and a planted fault is named."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ambidex
from ambidex.compare import tracefile
from ambidex.compare.cards import MATTERS
from ambidex.compare.command import compare
from ambidex.compare.fingerprint import fingerprint
from ambidex.compare.judge import Verdict
from ambidex.compare.report import scope
from ambidex.compare.tensors import array
from ambidex.engine import numerics
from ambidex.errors import Exit, Problems

Body = Callable[[nn.Module, Any, int], None]


def numbers(seed: int, *shape: int) -> Tensor:
    random = np.random.Generator(np.random.Philox(seed))
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))


def tokens(seed: int, rows: int = 8, context: int = 5, vocabulary: int = 20) -> Tensor:
    return torch.from_numpy(
        np.random.Generator(np.random.Philox(seed)).integers(0, vocabulary, (rows, context))
    )


def filled(model: nn.Module) -> nn.Module:
    """The same first weights wherever it is run."""
    with torch.no_grad():
        for number, weight in enumerate(model.parameters()):
            shape = (*weight.shape, 2) if weight.is_complex() else weight.shape
            drawn = numbers(number, *shape) / 3
            weight.copy_(torch.view_as_complex(drawn) if weight.is_complex() else drawn)
    return model


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def adamw(model: nn.Module) -> Any:
    return torch.optim.AdamW(model.parameters(), lr=1e-2)


def sgd(model: nn.Module) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def plain(model: nn.Module, optimizer: Any, step: int) -> None:
    model(numbers(step, 8, 6)).abs().square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def traced(path: Path, make: Callable[[], nn.Module] = perceptron, body: Body = plain, optimizer: Any = adamw, *,
           legs: int = 1, count: int = 5, wrap: Any = None, **options: Any) -> Path:  # fmt: skip
    for leg in range(legs):
        model = filled(make())
        trains = optimizer(model)
        outer = wrap(model) if wrap else model
        with ambidex.trace(outer, trains, path, leg=leg, **options):
            for step in range(count):
                body(outer, trains, step)
    return path


def judged(tmp_path: Path, reference: dict[str, Any], run: dict[str, Any]) -> Verdict:
    traced(tmp_path / "a", legs=4, **reference)
    traced(tmp_path / "b", **run)
    return compare([tmp_path / "a", tmp_path / "b"])[0]


def named(verdict: Verdict) -> tuple[str, str, int]:
    assert verdict.same is False
    assert verdict.first is not None
    return verdict.first.stage, verdict.first.module, verdict.first.step


class Complex(nn.Module):
    """Complex weights, whose imaginary parts the gradient and the output have too."""

    def __init__(self, times: float = 1.0) -> None:
        super().__init__()
        self.times, self.weight = times, nn.Parameter(torch.zeros(6, 6, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.complex64) @ self.weight
        return torch.complex(y.real, y.imag * self.times)


def test_the_imaginary_part_of_a_complex_number_is_recorded_and_a_fault_in_it_named(tmp_path: Path) -> None:
    def two(times: float) -> nn.Module:
        return nn.Sequential(Complex(), Complex(times))

    verdict = judged(tmp_path, {"make": lambda: two(1.0)}, {"make": lambda: two(1.0001)})
    assert named(verdict) == ("forward", "1", 0)
    trace = tracefile.read(tmp_path / "a" / "trace.safetensors")
    assert trace.shapes["update 0.weight"] == [6, 6, 2]
    assert trace.floor_legs[0] == "one ulp, 1"


def test_other_imaginary_parts_are_other_first_weights(tmp_path: Path) -> None:
    def turned() -> nn.Module:
        class Turned(Complex):
            pass

        return Turned()

    def shifted(model: nn.Module) -> Any:
        with torch.no_grad():
            torch.view_as_real(model.weight)[..., 1] += 0.1
        return adamw(model)

    verdict = judged(tmp_path, {"make": turned}, {"make": turned, "optimizer": shifted})
    assert verdict.first is not None
    assert (verdict.first.stage, verdict.first.tensor) == ("weights", "weight of weight")


class Looked(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6, sparse=sparse), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x)).mean(1)  # type: ignore[no-any-return]


def looks_up(model: nn.Module, optimizer: Any, step: int) -> None:
    model(tokens(step)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_sparse_gradient_is_the_same_as_the_dense_one_and_a_fault_in_it_is_named(tmp_path: Path) -> None:
    reference = {"make": lambda: Looked(sparse=True), "body": looks_up, "optimizer": sgd}
    dense = {**reference, "make": lambda: Looked(sparse=False)}
    assert judged(tmp_path / "same", reference, dense).same is True

    def broken(model: Any) -> nn.Module:
        model.table.weight.register_hook(lambda found: found * 1.001)
        return model  # type: ignore[no-any-return]

    verdict = judged(tmp_path / "broken", reference, {**dense, "wrap": broken})
    assert named(verdict) == ("backward", "table", 0)


class Positions(nn.Module):
    """What every micro-batch makes anew, whatever its size: embedded positions, and a loss within the model."""

    def __init__(self, *, smoothing: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.positions, self.head = nn.Embedding(20, 8), nn.Embedding(5, 8), nn.Linear(8, 20)
        self.loss = nn.CrossEntropyLoss(label_smoothing=smoothing)

    def forward(self, *, labels: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.tokens(input_ids) + self.positions(torch.arange(5)))
        return {"loss": self.loss(logits.flatten(0, 1), labels.flatten())}


def in_parts(parts: int, changed: str = "", *, divided: bool = True, backward: int = 9) -> Body:
    """A batch in so many micro-batches, by keyword, with what is ``changed`` turned round in step 1."""

    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        batch = {"input_ids": tokens(step), "labels": tokens(100 + step)}
        if changed and step == 1:
            batch[changed] = batch[changed].roll(1, 0)
        for part in range(parts):
            rows = slice(part * 8 // parts, (part + 1) * 8 // parts)
            loss = model(**{name: values[rows] for name, values in batch.items()})["loss"]
            if part < backward:
                (loss / (parts if divided else 1)).backward()
        optimizer.step()
        optimizer.zero_grad()

    return body


@pytest.mark.parametrize("parts", [2, 4])
def test_what_each_micro_batch_makes_anew_is_no_difference(parts: int, tmp_path: Path) -> None:
    one = {"make": Positions, "body": in_parts(1)}
    verdict = judged(tmp_path, one, {**one, "body": in_parts(parts)})
    assert verdict.same is True, verdict.first
    assert verdict.judged > 80


def test_micro_batches_that_are_not_averaged_or_left_out_are_the_accumulations(tmp_path: Path) -> None:
    one = {"make": Positions, "body": in_parts(2)}
    for name, wrong in (("whole", in_parts(2, divided=False)), ("first", in_parts(2, backward=1))):
        stage, _, step = named(judged(tmp_path / name, one, {**one, "body": wrong}))
        assert (name, stage, step) == (name, "accumulation", 0)


class Packed(nn.Module):
    """Is given the borders of sequences beside them: one more than there are, whatever the micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, x: Tensor, *, cu: Tensor) -> Tensor:
        return self.inner(x) * (cu[-1] / cu[-1])  # type: ignore[no-any-return]


def with_borders(parts: int, first: int = 0, *, keyword: bool = False) -> Body:
    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        for x in numbers(step, 8, 6).chunk(parts):
            cu = torch.arange(first, first + len(x) + 1)
            y = model(x=x, cu=cu) if keyword else model(x, cu=cu)
            (y.square().mean() / parts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return body


@pytest.mark.parametrize("keyword", [False, True])
def test_data_that_is_of_another_size_in_other_micro_batches_is_left_out_and_said(
    keyword: bool, tmp_path: Path
) -> None:
    one = {"make": Packed, "body": with_borders(1, keyword=keyword)}
    verdict = judged(tmp_path, one, {**one, "body": with_borders(2, keyword=keyword)})
    assert verdict.same is True, verdict.first
    assert [left["tensor"] for left in verdict.not_judged] == ["tokens of model.cu"]
    verdict = judged(tmp_path / "again", one, {**one, "body": with_borders(1, 1, keyword=keyword)})
    assert named(verdict) == ("data", "model.cu", 0)


@pytest.mark.parametrize("changed", ["input_ids", "labels"])
def test_data_that_is_given_by_keyword_is_data(changed: str, tmp_path: Path) -> None:
    one = {"make": Positions, "body": in_parts(1)}
    verdict = judged(tmp_path, one, {**one, "body": in_parts(1, changed)})
    assert named(verdict) == ("data", f"model.{changed}", 1)


def test_a_loss_within_the_model_is_named(tmp_path: Path) -> None:
    one = {"make": Positions, "body": in_parts(1)}
    verdict = judged(tmp_path, one, {**one, "make": lambda: Positions(smoothing=1e-3)})
    assert named(verdict) == ("forward", "loss", 0)


def by_closure(times: float = 1.0) -> Body:
    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(numbers(step, 8, 6)).square().mean() * times
            loss.backward()
            return loss

        optimizer.step(closure)

    return body


def test_an_optimizer_that_calls_for_the_gradients_is_the_same_as_one_that_is_given_them(
    tmp_path: Path,
) -> None:
    verdict = judged(tmp_path, {}, {"body": by_closure()})
    assert verdict.same is True, verdict.first
    assert verdict.worst is not None
    assert verdict.worst.ratio == 0


def test_a_wrong_loss_under_lbfgs_is_the_losss(tmp_path: Path) -> None:
    def lbfgs(model: nn.Module) -> Any:
        return torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    reference = {"body": by_closure(), "optimizer": lbfgs}
    assert named(judged(tmp_path, reference, {**reference, "body": by_closure(1.001)}))[0] == "loss"


def pair_of(epsilon: float) -> Callable[[Any], Any]:
    def optimizers(model: Any) -> list[torch.optim.Optimizer]:
        return [sgd(model[0]), torch.optim.AdamW(model[2].parameters(), lr=1e-2, eps=epsilon)]

    return optimizers


def test_several_optimizers_make_one_step_and_the_wrong_one_is_named(tmp_path: Path) -> None:
    def body(model: nn.Module, optimizers: Any, step: int) -> None:
        model(numbers(step, 8, 6)).square().mean().backward()
        for one in optimizers:
            one.step()
            one.zero_grad()

    reference = {"body": body, "optimizer": pair_of(1e-8)}
    verdict = judged(tmp_path, reference, {**reference, "optimizer": pair_of(1e-6)})
    assert named(verdict) == ("update", "2", 0)


def grows(seed: int) -> Body:
    def body(model: Any, optimizer: Any, step: int) -> None:
        if step == 2:
            more = nn.Linear(3, 3)
            with torch.no_grad():
                for number, weight in enumerate(more.parameters()):
                    weight.copy_(numbers(seed + number, *weight.shape))
            model.append(more)
            optimizer.add_param_group({"params": list(more.parameters())})
        model[0].weight.requires_grad_(step >= 1)
        plain(model, optimizer, step)

    return body


def test_parameters_may_come_later_or_be_trained_later(tmp_path: Path) -> None:
    assert judged(tmp_path / "same", {"body": grows(1)}, {"body": grows(1)}).same is True
    assert judged(tmp_path / "other", {"body": grows(1)}, {"body": grows(7)}).same is False


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        return self.module(*arguments)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", [Wrapper, torch.jit.script])
def test_a_wrapped_or_scripted_model_is_the_same(wrap: Any, tmp_path: Path) -> None:
    verdict = judged(tmp_path, {}, {"wrap": wrap})
    assert verdict.same is True, verdict.first
    assert verdict.judged > 20


def scheduled(factor: float) -> Body:
    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        if step == 3:  # between two probes
            optimizer.param_groups[0]["lr"] *= factor
        plain(model, optimizer, step)

    return body


def test_another_learning_rate_between_two_probes_is_the_schedules(tmp_path: Path) -> None:
    verdict = judged(tmp_path, {"body": scheduled(1.0)}, {"body": scheduled(1.01)})
    assert named(verdict) == ("schedule", "optimizer", 3)


def test_updates_off_by_a_factor_at_the_same_rate_are_the_optimizers(tmp_path: Path) -> None:
    def momentum(*, nesterov: bool) -> Any:
        return lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov)

    verdict = judged(tmp_path, {"optimizer": momentum(nesterov=False)}, {"optimizer": momentum(nesterov=True)})  # fmt: skip
    assert named(verdict) == ("update", "optimizer", 0)


def test_a_leg_with_another_rate_or_config_is_refused_and_the_floor_left_as_it_was(tmp_path: Path) -> None:
    path = traced(tmp_path / "a", legs=2, config={"rate": 1e-2})
    before = (path / "trace.safetensors").read_bytes()

    def faster(model: nn.Module) -> Any:
        return torch.optim.AdamW(model.parameters(), lr=2e-2)

    for optimizer, config in ((faster, {"rate": 1e-2}), (adamw, {"rate": 2e-2})):
        model = filled(perceptron())
        trains = optimizer(model)
        with (
            pytest.raises(Problems, match="Leg 2 has another"),
            ambidex.trace(model, trains, path, leg=2, config=config),
        ):
            plain(model, trains, 0)
    assert (path / "trace.safetensors").read_bytes() == before


class Between(nn.Module):
    """A function between two modules, in one of the runs only."""

    def __init__(self, *, turned: bool) -> None:
        super().__init__()
        self.inner, self.head, self.turned = nn.Linear(6, 6), nn.Linear(6, 3), turned

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.head(y.flip(1) if self.turned else y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("turned", [False, True])
def test_a_function_that_only_one_run_has_is_not_the_fault_of_the_module_behind_it(
    turned: bool, tmp_path: Path
) -> None:
    verdict = judged(
        tmp_path, {"make": lambda: Between(turned=turned)}, {"make": lambda: Between(turned=not turned)}
    )
    assert named(verdict) == ("forward", "", 0)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"steps": 5}, r"steps=range\(5\)"), ({"steps": "5"}, "whole numbers"), ({"steps": None}, "whole numbers"),
        ({"steps": [1.5]}, "whole numbers"), ({"steps": [-1]}, "whole numbers"), ({"steps": [[0]]}, "whole numbers"),
        ({"steps": ()}, "whole numbers"), ({"leg": -1}, "leg="), ({"leg": "1"}, "leg="), ({"leg": 1.5}, "leg="),
        ({"config": {"a": object()}}, "'a': <object"), ({"config": {"a": float("nan")}}, "'a': nan"),
        ({"config": {("a",): 1}}, r"\('a',\): 1"), ({"config": [1]}, "config="), ({"config": {"a": "x" * (1 << 21)}}, "too large"),
        ({"model": 5}, "torch.nn.Module"), ({"optimizer": 5}, "torch.optim.Optimizer"), ({"optimizer": []}, "torch.optim.Optimizer"),
        ({"path": 5}, "name of a folder"), ({"path": None}, "name of a folder"), ({"path": "a\0b"}, "name of a folder"),
        ({"model": nn.ReLU()}, "no parameters"), ({"model": nn.Sequential(nn.LazyLinear(3))}, "lazy"),
        ({"model": nn.Linear(2, 2)}, "none of the model's"), ({"model": nn.Linear(2, 2, device="meta")}, "meta device"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_the_loop(asked: dict[str, Any], words: str, tmp_path: Path) -> None:
    model = perceptron()
    given = {"model": model, "optimizer": sgd(model), "path": tmp_path / "run", **asked}
    with pytest.raises(Problems, match=words) as caught, ambidex.trace(**given):
        pytest.fail("the loop began")
    assert caught.value.exit_code == Exit.USAGE
    assert not (tmp_path / "run").exists()


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(Problems) as caught, ambidex.trace(5, 5, tmp_path, steps=5, leg=-1, config=5):  # type: ignore[arg-type]
        pass
    assert len(caught.value.problems) == 5


def test_a_file_in_the_place_of_the_folder_is_said_before_the_loop(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("", "utf-8")
    model = perceptron()
    for path in (tmp_path / "run", tmp_path / "run" / "inner", tmp_path / ("x" * 5000)):
        with pytest.raises(Problems) as caught, ambidex.trace(model, sgd(model), path):
            pytest.fail("the loop began")
        assert caught.value.exit_code == Exit.CANNOT_WRITE


def test_a_name_that_no_trace_holds_is_refused_and_a_long_one_is_read(tmp_path: Path) -> None:
    def of(length: int) -> nn.Module:
        model = nn.Module()
        model.add_module("x" * length, nn.Linear(6, 3))
        model.forward = getattr(model, "x" * length).forward  # type: ignore[method-assign]
        return model

    assert compare([traced(tmp_path / "long", lambda: of(3000))] * 2)[0].same is True
    with pytest.raises(Problems, match="too long a name"):
        traced(tmp_path / "longer", lambda: of(5000))


def test_a_loop_that_raises_leaves_no_run_and_its_own_error(tmp_path: Path) -> None:
    def fails(model: nn.Module, optimizer: Any, step: int) -> None:
        raise RuntimeError("the loop's own")

    with pytest.raises(RuntimeError, match="the loop's own"):
        traced(tmp_path / "run", body=fails)
    assert not (tmp_path / "run").exists()


def test_a_run_of_train_and_a_loop_of_ones_own_differ_in_one_thing_that_is_said_once(tmp_path: Path) -> None:
    traced(tmp_path / "own", config={"rate": 1, "batch": 2})
    card = json.loads((tmp_path / "own" / "card.json").read_text("utf-8"))
    card |= {"config": {f"setting{n}": n for n in range(30)}, "data": {"hash": "x"}}
    (tmp_path / "trained").mkdir()
    (tmp_path / "trained" / "card.json").write_text(json.dumps(card), "utf-8")
    for pair in (("own", "trained"), ("trained", "own")):
        verdict = compare([tmp_path / name for name in pair])[0]
        assert len(verdict.problems) == 1
        assert "another loop" in verdict.problems[0].what


def test_a_setting_of_ones_own_is_not_shown_as_a_flag(tmp_path: Path) -> None:
    traced(tmp_path / "a", config={"my_rate": 1})
    traced(tmp_path / "b", config={"my_rate": 2})
    (problem,) = compare([tmp_path / "a", tmp_path / "b"])[0].problems
    assert problem.found == "my_rate: 2"


def functional(model: Any, optimizer: Any, step: int) -> None:
    def loss(weights: dict[str, Tensor]) -> Tensor:
        found: Tensor = torch.func.functional_call(model, weights, (numbers(step, 8, 6),))
        return found.square().mean()

    found = torch.func.grad(loss)({name: weight.detach() for name, weight in model.named_parameters()})
    for name, weight in model.named_parameters():
        weight.grad = found[name]
    optimizer.step()
    optimizer.zero_grad()


def asks_autograd(model: Any, optimizer: Any, step: int) -> None:
    weights = list(model.parameters())
    for weight, found in zip(
        weights, torch.autograd.grad(model(numbers(step, 8, 6)).square().mean(), weights)
    ):
        weight.grad = found
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("body", [functional, asks_autograd])
def test_gradients_that_no_backward_accumulated_are_recorded_all_the_same(body: Body, tmp_path: Path) -> None:
    verdict = judged(tmp_path, {}, {"body": body})
    assert verdict.same is True, verdict.first
    assert verdict.judged > 40


@dataclasses.dataclass
class Given:
    logits: Tensor


class GivesDataclass(nn.Module):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.inner, self.times = nn.Linear(6, 3), times

    def forward(self, x: Tensor) -> Given:
        return Given(self.inner(x) * self.times)


class ReadsDataclass(nn.Module):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.giver, self.head = GivesDataclass(times), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.giver(x).logits)  # type: ignore[no-any-return]


def test_a_module_that_gives_a_dataclass_is_named(tmp_path: Path) -> None:
    verdict = judged(tmp_path, {"make": lambda: ReadsDataclass(1.0)}, {"make": lambda: ReadsDataclass(1.001)})
    assert named(verdict) == ("forward", "giver", 0)


def test_a_loop_that_took_fewer_steps_is_the_same_as_far_as_it_went_and_that_is_said(tmp_path: Path) -> None:
    verdict = judged(tmp_path, {}, {"count": 2})
    assert verdict.same is True
    assert "b took 2 steps and a 5; nothing is said of those that only one has." in verdict.notes


def test_traces_of_other_steps_have_nothing_in_common_and_need_no_other_floor(tmp_path: Path) -> None:
    (problem,) = judged(tmp_path, {"steps": [0]}, {"steps": [1]}).problems
    assert problem.found == "steps 0 and steps 1"
    assert "steps=" in problem.fix


@pytest.mark.parametrize("leg", [0, 1])
def test_no_leg_is_written_into_a_run_of_train(leg: int, tmp_path: Path) -> None:
    traced(tmp_path)
    (tmp_path / "metrics.csv").write_text("step\n", "utf-8")
    model = perceptron()
    with pytest.raises(Problems, match="run of ambidex train"), ambidex.trace(model, sgd(model), tmp_path, leg=leg):  # fmt: skip
        pytest.fail("the loop began")


def test_a_floor_of_one_leg_is_said_to_be_one(tmp_path: Path) -> None:
    for name, legs, said in (("none", 1, False), ("one", 2, True), ("three", 4, False)):
        traced(tmp_path / name, legs=legs)
        traced(tmp_path / f"{name}-other")
        notes = compare([tmp_path / name, tmp_path / f"{name}-other"])[0].notes
        assert any("is of 1 leg" in note for note in notes) is said, name


def test_more_legs_of_a_loop_of_ones_own_are_not_measured_again_by_the_command(tmp_path: Path) -> None:
    verdict = judged(tmp_path, {}, {})
    verdict.near = 1
    assert "leg=4" in scope(verdict)
    assert "--measure-again" not in scope(verdict)


def test_where_nothing_was_measured_no_step_is_called_late(tmp_path: Path) -> None:
    traced(tmp_path / "a")
    traced(tmp_path / "b", body=scheduled(1.01))
    (one,) = compare([tmp_path / "a", tmp_path / "b"])[0].not_judged
    assert one["why"] == "no floor was measured in either run"


def test_a_loop_of_any_length_writes_down_no_more_rates_than_a_trace_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("loop", "rates"):
        monkeypatch.setattr(f"ambidex.compare.{module}.MOST_RATES", 3)
    verdict = judged(tmp_path, {}, {"count": 2})
    assert len(tracefile.read(tmp_path / "a" / "trace.safetensors").rates) == 3
    assert not any("took" in note for note in verdict.notes)


@dataclasses.dataclass
class Node:
    x: Tensor
    children: list[Node] = dataclasses.field(default_factory=list)
    parent: Node | None = None


class ReadsNode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)

    def forward(self, node: Node) -> Tensor:
        return self.inner(node.x + node.children[0].x)  # type: ignore[no-any-return]


def test_a_model_may_be_given_what_holds_itself(tmp_path: Path) -> None:
    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        root = Node(numbers(step, 8, 6), [Node(numbers(100 + step, 8, 6))])
        root.parent, root.children[0].parent = root, root
        model(root).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    verdict = judged(tmp_path, {"make": ReadsNode, "body": body}, {"make": ReadsNode, "body": body})
    assert verdict.same is True


class Frozen(nn.Module):
    """A part that is not trained, under inference mode and writing in place, and one that is."""

    def __init__(self, times: float = 1.0) -> None:
        super().__init__()
        self.frozen = nn.Sequential(nn.Linear(6, 6), Times(times), nn.ReLU(inplace=True))
        self.head = nn.Linear(6, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y = self.frozen(x)
        return self.head(y.clone())  # type: ignore[no-any-return]


class Times(nn.Module):
    def __init__(self, times: float) -> None:
        super().__init__()
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        return x * self.times


def test_a_part_under_inference_mode_is_recorded_and_a_fault_in_it_named(tmp_path: Path) -> None:
    assert judged(tmp_path / "same", {"make": Frozen}, {"make": Frozen}).same is True
    verdict = judged(tmp_path / "not", {"make": Frozen}, {"make": lambda: Frozen(1.001)})
    assert named(verdict) == ("forward", "frozen.1", 0)


class Mixed(nn.Module):
    """Is given, and puts out within, tensors that are no block of numbers."""

    def __init__(self, turn: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.turn, self.inner, self.back = Apply(turn), nn.Linear(6, 3), Apply(back)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.back(self.turn(x)))  # type: ignore[no-any-return]


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


FORMS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sparse_coo": (lambda x: x.to_sparse(), lambda x: x.to_dense()),
    "sparse_csr": (lambda x: x.to_sparse_csr(), lambda x: x.to_dense()),
    "nested": (
        lambda x: torch.nested.as_nested_tensor(list(x)),
        lambda x: torch.nested.to_padded_tensor(x, 0.0),
    ),
    "nested jagged": (
        lambda x: torch.nested.as_nested_tensor(list(x), layout=torch.jagged),
        lambda x: torch.nested.to_padded_tensor(x, 0.0),
    ),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("given", [False, True])
def test_sparse_and_nested_tensors_are_passed_over_and_that_is_said(
    form: str, given: bool, tmp_path: Path
) -> None:
    turn, back = FORMS[form]

    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        x = numbers(step, 8, 6)
        model(turn(x) if given else x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    one = {"make": lambda: Mixed((lambda x: x) if given else turn, back), "body": body}
    verdict = judged(tmp_path, one, one)
    assert verdict.same is True
    (said,) = [note for note in verdict.notes if note.startswith("b did not record: ")]
    assert f"{form.split(maxsplit=1)[0]} tensors that turn takes or gives" in said
    assert said.count("takes or gives") == 2 + given  # each once, whatever the steps


def grouped(count: int) -> Callable[[Any], Any]:
    def make(model: Any) -> Any:
        weights = list(model.parameters())
        groups = [{"params": weights}] if count == 1 else [{"params": weights[:2]}, {"params": weights[2:]}]
        return torch.optim.AdamW(groups, lr=1e-2)

    return make


def test_learning_rates_that_are_not_compared_are_said_not_to_be(tmp_path: Path) -> None:
    notes = judged(tmp_path, {"optimizer": grouped(1)}, {"optimizer": grouped(2)}).notes
    assert "The learning rates were not compared: 2 groups of parameters against 1 at step 0." in notes
    path = tmp_path / "b" / "trace.safetensors"
    found = tracefile.read(path)
    found.rates = []
    path.write_bytes(tracefile.write(found))
    notes = compare([tmp_path / "a", tmp_path / "b"])[0].notes
    assert "The learning rates were not compared: b wrote none down." in notes
    assert not any("not compared" in note for note in compare([tmp_path / "a"] * 2)[0].notes)


def test_exact_data_is_not_made_wider_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = set()

    def watched(values: Tensor, **options: Any) -> Any:
        kinds.add(values.dtype)
        return array(values, **options)

    monkeypatch.setattr("ambidex.compare.recorder.array", watched)

    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        model(numbers(step, 8, 6), cu=torch.ones(8, dtype=torch.bool)).square().mean().backward()
        optimizer.step()

    traced(tmp_path, Packed, body)
    assert torch.bool in kinds
    assert torch.float64 not in kinds


class Weighs(torch.optim.SGD):
    """Asks, while it works, how much numpy holds."""

    held = 0

    def step(self, closure: Any = None) -> Any:
        numpys = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
        found = tracemalloc.take_snapshot().filter_traces([numpys])
        Weighs.held = max(Weighs.held, sum(one.size for one in found.statistics("filename")))
        return super().step(closure)


def test_of_gradients_no_second_copy_is_kept(tmp_path: Path) -> None:
    model = nn.Linear(512, 512, bias=False)
    Weighs.held = 0
    fingerprint(np.zeros(1))  # makes its table, once
    optimizer = Weighs(model.parameters(), lr=0.1)
    tracemalloc.start()
    try:
        with ambidex.trace(model, optimizer, tmp_path / "run"):
            for step in range(2):
                model(numbers(step, 8, 512)).square().mean().backward()
                optimizer.step()
    finally:
        tracemalloc.stop()
    assert Weighs.held < 2.5 * model.weight.nbytes  # weights before, and gradients before they are clipped


def test_every_switch_of_the_numerics_that_is_on_a_card_is_compared() -> None:
    known = {key for key, _ in MATTERS}
    assert {f"numerics.{name}" for name in numerics()} <= known


class Fails(torch.optim.AdamW):
    """Has no memory for one of its steps."""

    def __init__(self, weights: Any, *, early: bool) -> None:
        super().__init__(weights, lr=1e-2)
        self.left, self.early = 2, early  # the first is well, the second is not

    def step(self, closure: Any = None) -> Any:
        self.left -= 1
        if not self.left and self.early:
            raise RuntimeError("out of memory")
        found = None if closure is None else closure()
        if not self.left:
            raise RuntimeError("out of memory")
        return super().step(None) or found


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("closes", [False, True])
def test_a_step_that_raises_is_left_out_and_the_loop_recorded_as_it_goes_on(
    closes: bool, early: bool, tmp_path: Path
) -> None:
    def body(model: nn.Module, optimizer: Any, step: int) -> None:
        for seed in (50 + step, step):  # the batch that is too large, and the one that is not
            if seed == step or (step == 1 and isinstance(optimizer, Fails)):
                try:
                    once(model, optimizer, seed)
                except RuntimeError:
                    optimizer.zero_grad()

    def once(model: nn.Module, optimizer: Any, seed: int) -> None:
        def closure() -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = model(numbers(seed, 8, 6)).square().mean()
            loss.backward()
            return loss

        if not closes:
            closure()
        optimizer.step(closure if closes else None)

    verdict = judged(
        tmp_path,
        {"body": body},
        {"body": body, "optimizer": lambda model: Fails(model.parameters(), early=early)},
    )
    assert verdict.same is True, verdict.first
    assert verdict.worst is not None
    assert verdict.worst.ratio == 0
    found = [tracefile.read(tmp_path / one / "trace.safetensors") for one in "ab"]
    keys = [next(iter(one.legs.values())).keys for one in found]
    assert keys[0] == keys[1]
    assert len(found[0].rates) == len(found[1].rates) == 5
    assert "b did not record: an attempt at step 1, in which optimizer.step() raised." in verdict.notes


def with_masters(model: nn.Module, optimizer: Any, step: int) -> None:
    """Weights in bf16 whose copies in fp32 are what is trained, all of them or some."""
    weights = list(model.parameters())
    masters = optimizer.param_groups[0]["params"]
    model(numbers(step, 8, 6).bfloat16()).square().mean().backward()
    for weight, master in zip(weights, masters):
        if weight is not master:
            master.grad = weight.grad.float()
    optimizer.step()
    for weight, master in zip(weights, masters):
        weight.data.copy_(master.data)
        weight.grad = None


@pytest.mark.parametrize("count", [2, 4])
def test_an_optimizer_of_copies_in_fp32_is_recorded_as_far_as_it_goes_and_that_is_said(
    count: int, tmp_path: Path
) -> None:
    def masters(model: nn.Module) -> Any:
        weights = [
            nn.Parameter(one.detach().float()) if number < count else one
            for number, one in enumerate(model.parameters())
        ]
        return torch.optim.AdamW(weights, lr=1e-2)

    one = {"make": lambda: perceptron().bfloat16(), "body": with_masters, "optimizer": masters}
    verdict = judged(tmp_path, one, one)
    assert verdict.same is True, (verdict.first, verdict.problems)
    (note,) = [note for note in verdict.notes if note.startswith("b did not record: ")]
    assert f"parameters that are not the model's ({count} of them)" in note
