"""Blocks that join late: until then the whole model is its first blocks, then it is trained as a whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ambidex import cli, launch, plan
from ambidex.compare.tracing import probe_steps
from ambidex.engine import Device
from ambidex.growth import Growth
from ambidex.model import LanguageModel, Shape, initialise
from ambidex.rows import Row
from ambidex.runs import Run
from ambidex.screen import Screen
from ambidex.summary import share_of_peak, work_of
from ambidex.trainer import Trainer
from test_trainer import make_trainer
from tiny import train_words

GROWING = {"layers": 3, "grow_from": 1, "grow_at": 0.5, "steps": 8}
SHAPE = Shape(
    vocabulary_size=37, layers=3, width=16, heads=2, kv_heads=1, feed_forward=24, context=12, grow_from=1
)


def late(name: str) -> bool:
    return name.startswith(("model.layers.1.", "model.layers.2."))


@given(st.integers(1, 9), st.integers(0, 9), st.integers(0, 40), st.integers(1, 60))
def test_the_mean_depth_is_the_mean_of_the_depths(first, more, step, steps):
    growth = Growth(first, first + more, step)
    depths = [growth.depth_at(one) for one in range(steps)]
    assert growth.mean_depth(steps) == pytest.approx(sum(depths) / steps)


def test_blocks_that_wait_add_exactly_nothing():
    model = LanguageModel(SHAPE)
    initialise(model, seed=3)
    tokens = torch.arange(24).view(2, 12)
    whole = model(tokens)
    model.model.deepen(1)
    assert torch.equal(model(tokens), whole)


def test_the_first_blocks_begin_as_in_a_model_that_does_not_grow():
    growing, whole = LanguageModel(SHAPE), LanguageModel(Shape(37, 3, 16, 2, 1, 24, 12))
    initialise(growing, seed=3)
    initialise(whole, seed=3)
    outputs = ("o_proj.weight", "down_proj.weight")
    for (name, weight), (_, other) in zip(growing.named_parameters(), whole.named_parameters()):
        assert torch.equal(weight, other) != (late(name) and name.endswith(outputs)), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_late_blocks_are_left_alone_until_their_step_and_learn_from_then_on(story, tmp_path, optimizer):
    trainer = make_trainer(story, tmp_path, **GROWING, optimizer=optimizer)
    first = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    for step in range(8):
        trainer.update()
        assert trainer.optimizer.late_steps == max(0, step - 3)
        changed = {
            name for name, weight in trainer.model.named_parameters() if not torch.equal(weight, first[name])
        }
        assert any(map(late, changed)) == (step >= 4), step
    # A silent block's inner weights have no gradient in its first step, all of them have one after it.
    assert changed == set(first)


def test_while_blocks_wait_the_validation_loss_is_that_of_the_whole_model(story, tmp_path):
    trainer = make_trainer(story, tmp_path, **GROWING)
    for _ in range(3):
        trainer.update()
    measured = trainer.evaluate()
    trainer.model.model.deepen(3)
    assert trainer.evaluate() == measured


def test_a_late_weights_first_adamw_step_is_as_long_as_the_rate_whenever_it_comes(story, tmp_path):
    trainer = make_trainer(story, tmp_path, **GROWING, optimizer="adamw", weight_decay=0, clip=0)
    name = "model.layers.2.self_attn.o_proj.weight"
    weight = dict(trainer.model.named_parameters())[name]
    for _ in range(4):
        trainer.update()
    row = trainer.update()
    moved = weight.detach().abs()
    assert float(moved.median()) == pytest.approx(row.lr, rel=1e-2)


def test_a_checkpoint_holds_every_moment_whether_blocks_wait_or_not(story, tmp_path):
    for optimizer in ("adamw", "muon"):
        trainer = make_trainer(story, tmp_path, **GROWING, optimizer=optimizer)
        trainer.update()
        wanted = plan.tensors_of(trainer.settings, 256).optimizer
        assert {name: tuple(moment.shape) for name, moment in trainer.optimizer.state().items()} == wanted


def test_the_plan_says_when_blocks_join_and_counts_only_the_operations_that_are_done(story, tmp_path, capsys):
    words = train_words(story, tmp_path / "run", **GROWING, dry_run=True)
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "the first 1 block alone for 4 steps, then all 3; the others add nothing until then" in said
    shape = Shape(256, 3, 32, 2, 1, 64, 16)
    mean = (shape.operations_per_token(1) + shape.operations_per_token(3)) // 2
    assert f"{mean:,} operations a token" in said


def test_a_run_that_grows_is_trained_saved_and_sampled(story: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    assert cli.main(train_words(story, out, **GROWING)) == 0
    assert len(Run(out).metrics) == 8
    assert cli.main(["sample", str(out), "--tokens", "4"]) == 0
    assert cli.main(["export", str(out), "--to", str(tmp_path / "model")]) == 0


def test_the_trial_of_time_counts_both_kinds_of_steps_and_not_what_a_replay_records(
    story, tmp_path, monkeypatch
):
    """By a clock of its own: a step of one block takes 1 s, of all 10 s, and the second by each replay 100 s more."""
    begun: list[object] = []  # the replays of the updates so far

    def update(trainer):
        trainer.deepen()
        begun.append(trainer.learn)
        records = sum(one is trainer.learn for one in begun) == 2
        trainer.seconds += (1 if trainer.model.model.depth == 1 else 10) + 100 * records
        trainer.step += 1
        return Row(trainer.step, 1, 1.0, None, 1.0, 1.0, trainer.seconds, 1.0)

    monkeypatch.setattr(Device, "replayed", lambda device, learn, weights: partial(learn))
    monkeypatch.setattr(Trainer, "update", update)
    monkeypatch.setattr(Trainer, "evaluate", lambda trainer, limit: 1.0)
    trial = 4 * 1 + 100 + 4 * 10 + 100
    trainer = make_trainer(story, tmp_path, **{**GROWING, "time": trial + 1000.0})
    launch.take_time(trainer)
    assert trainer.settings.steps == 181  # 90 of 1 s and 91 of 10 s


@given(st.floats(0, 1e4), st.floats(1e-3, 10), st.floats(1e-3, 10), st.floats(0, 1))
def test_time_becomes_the_largest_number_of_steps_that_fit(left, first, last, part):
    def seconds_of(steps):
        waited = int(steps * part)
        return waited * first + (steps - waited) * last

    steps = launch.most_steps(seconds_of, left)
    assert seconds_of(steps + 1) > left
    assert steps == 1 or seconds_of(steps) <= left


def test_compiling_tries_every_number_of_blocks_that_steps_will_have(story, tmp_path):
    trainer, seen = make_trainer(story, tmp_path, **GROWING, sampled_softmax=4), []
    launch.try_out(trainer, lambda inputs: seen.append(trainer.model.model.depth) or trainer.model(inputs))
    assert seen == [3, 1]
    assert trainer.model.model.depth == 1
    assert trainer.forward is trainer.model
    assert all(weight.grad is None for weight in trainer.model.parameters())


def test_share_and_time_left_go_by_what_each_step_computes(story, tmp_path):
    trainer = make_trainer(story, tmp_path, **GROWING, sampled_softmax=4)
    trainer.device.product_rate = 1e9
    work = work_of(trainer)
    shape = trainer.model.shape
    before, after = (shape.operations_per_token(depth, work.candidates) for depth in (1, 3))
    assert (work.at(3), work.at(4)) == (before, after)
    assert work.mean(8) * 8 == pytest.approx(4 * before + 4 * after, abs=8)
    row = Row(5, 1, 1.0, None, 1.0, 1.0, 1.0, 1000.0)
    assert share_of_peak(trainer, work, row) == pytest.approx(1000 * after / 1e9)
    screen = Screen(8, 0, None, lambda steps: float(steps * work.mean(steps)), silent=True)
    said = []
    screen.write = said.append
    screen.show(Row(4, 1, 1.0, 1.0, 1.0, 1.0, 10.0, 1000.0))
    assert said[-1].split()[-1] == f"{10 * after / before:.0f}s"


def test_a_trace_looks_at_the_two_steps_from_the_join():
    assert {20, 21} <= probe_steps(40, join=20)
    assert probe_steps(40) == probe_steps(40, join=0)
