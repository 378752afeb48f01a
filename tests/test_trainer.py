import csv
import json

import numpy as np
import pytest
import torch

import ambidex
from ambidex import checkpoint, cli, config, launch
from ambidex.device.choose import Choice
from ambidex.engine import Device, LossScale
from ambidex.errors import Problems
from ambidex.text.tokens import prepare
from ambidex.trainer import Rhythm, Trainer
from tiny import TINY, train_words


@pytest.fixture
def trainer(story, tmp_path):
    return make_trainer(story, tmp_path)


def make_trainer(story, cache, **settings) -> Trainer:
    given = {**TINY, "data": [str(story)], "precision": "fp32", **settings}
    s = config.resolve(given, environment={}).settings
    tokens = prepare(s.data, tokenizer="byte", vocabulary_size=256, field="text",
                     validation_fraction=s.validation_fraction, cache=cache, progress=False)  # fmt: skip
    return launch.build(s, Device("cpu", s.precision, 1), tokens)


def gradients_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    trainer.accumulate(*trainer.batches.batch(0))
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("micro", [1, 2])
def test_any_split_into_micro_batches_gives_the_gradient_and_the_loss_of_the_whole_batch(
    story, tmp_path, micro
):
    whole = make_trainer(story, tmp_path)
    split = make_trainer(story, tmp_path, micro_batch_size=micro)
    assert whole.accumulate(*whole.batches.batch(3)) == pytest.approx(
        split.accumulate(*split.batches.batch(3)), rel=1e-6
    )
    a, b = gradients_of(whole), gradients_of(split)
    for name, gradient in a.items():
        assert torch.allclose(gradient, b[name], rtol=1e-4, atol=1e-6), name


def test_the_gradient_is_that_of_the_mean_loss_per_token(trainer):
    inputs, targets = trainer.batches.batch(0)
    loss = trainer.accumulate(inputs, targets)
    found = trainer.model.model.embed_tokens.weight.grad.clone()
    trainer.optimizer.zero_gradients()
    logits = trainer.model.logits(trainer.model(torch.from_numpy(inputs.copy())))
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets.copy()).flatten())
    mean.backward()
    assert loss == pytest.approx(float(mean.detach()), rel=1e-6)
    wanted = trainer.model.model.embed_tokens.weight.grad
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_the_first_loss_is_near_that_of_guessing_among_all_bytes(trainer):
    assert trainer.update().loss == pytest.approx(np.log(256), abs=0.7)


def test_a_learnable_text_is_learnt(story, tmp_path):
    trainer = make_trainer(story, tmp_path, steps=60, learning_rate=1e-2)
    first = trainer.evaluate()
    for _ in range(60):
        trainer.update()
    assert trainer.evaluate() < first - 2.0


def test_each_step_trains_on_its_own_batch_at_its_own_rate_and_says_so(trainer, monkeypatch):
    asked: list[int] = []
    used: list[float] = []
    batch, step = trainer.batches.batch, trainer.optimizer.step
    monkeypatch.setattr(trainer.batches, "batch", lambda number: asked.append(number) or batch(number))
    monkeypatch.setattr(trainer.optimizer, "step", lambda rate: used.append(rate) or step(rate))
    rows = [trainer.update() for _ in range(9)]
    assert asked == list(range(9))
    assert used == [row.lr for row in rows] == [trainer.schedule.at(number) for number in range(9)]
    assert len(set(used)) > 3


def test_evaluating_changes_nothing_that_is_trained(story, tmp_path):
    watched, unwatched = make_trainer(story, tmp_path), make_trainer(story, tmp_path)
    for _ in range(3):
        watched.update()
        watched.evaluate(64)
        watched.sample(1)
        unwatched.update()
    for (name, a), b in zip(watched.model.named_parameters(), unwatched.model.parameters()):
        assert torch.equal(a, b), name


def test_the_validation_loss_is_the_mean_over_every_held_out_token(trainer):
    held_out = torch.from_numpy(np.asarray(trainer.tokens.validation, dtype=np.int64))
    context = trainer.settings.context
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(held_out) - 1, context):
            piece = held_out[start : start + context + 1]
            logits = trainer.model.logits(trainer.model(piece[None, :-1]))[0]
            total += float(torch.nn.functional.cross_entropy(logits, piece[1:], reduction="sum"))
            count += len(piece) - 1
    assert count == trainer.tokens.validation_tokens - 1
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-5)


def test_a_loss_that_is_not_finite_ends_in_exit_code_5_and_keeps_the_checkpoint(
    tmp_path, story, monkeypatch, capsys
):
    accumulate = Trainer.accumulate

    def poisoned(self, inputs, targets):
        loss = accumulate(self, inputs, targets)
        return float("nan") if self.step == 7 else loss

    monkeypatch.setattr(Trainer, "accumulate", poisoned)
    assert cli.main(train_words(story, tmp_path / "run")) == 5
    assert "The loss at step 8 is not finite" in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "step-000006").is_dir()


def test_memory_that_runs_out_ends_in_exit_code_6_with_a_smaller_micro_batch(
    tmp_path, story, monkeypatch, capsys
):
    def full(self, inputs, targets):
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    monkeypatch.setattr(Trainer, "accumulate", full)
    assert cli.main(train_words(story, tmp_path / "run")) == 6
    assert "--micro-batch-size" in capsys.readouterr().err


def test_the_run_folder_is_the_contracts(tmp_path, story, capsys):
    run = tmp_path / "run"
    assert cli.main(train_words(story, run)) == 0
    out = capsys.readouterr().out
    assert out.startswith("device   cpu: ")
    for name in ("card.json", "metrics.csv", "loss.png", "samples.md", "summary.md", "tokenizer.json"):
        assert (run / name).stat().st_size > 0, name
    last = run / "checkpoints" / "step-000012"
    assert sorted(p.name for p in last.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]  # fmt: skip
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(1, 13))
    assert [int(row["step"]) for row in rows if row["val_loss"]] == [4, 8, 12]
    assert [int(row["tokens"]) for row in rows] == [64 * n for n in range(1, 13)]
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    card = json.loads((run / "card.json").read_text())
    assert card["device"]["name"] == "cpu"
    assert card["device"]["reason"]
    assert card["config"]["layers"] == 2
    assert len(card["data"]["hash"]) == len(card["weights_sha256"]) == 64
    assert {"torch", "numpy"} <= card["versions"].keys()


def test_time_becomes_a_number_of_steps_once_and_is_then_a_setting(tmp_path, story, capsys):
    run = tmp_path / "run"
    assert cli.main(train_words(story, run, time="3s", evaluate_every=0, save_every=0)) == 0
    steps = json.loads((run / "card.json").read_text())["config"]["steps"]
    assert steps > 1
    assert (run / "checkpoints" / f"step-{steps:06d}").is_dir()
    again = tmp_path / "again"
    assert cli.main(train_words(story, again, steps=steps, evaluate_every=0, save_every=0)) == 0
    a, b = (
        (r / "checkpoints" / f"step-{steps:06d}" / "model.safetensors").read_bytes() for r in (run, again)
    )
    assert a == b, "the trial steps left no trace in the numbers"


def test_dry_run_prints_the_plan_and_every_setting_with_its_origin_and_writes_nothing(
    tmp_path, story, capsys
):
    assert cli.main([*train_words(story, tmp_path / "run"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "an estimate" in out
    assert "flag --layers" in out
    assert not (tmp_path / "run").exists()


def test_train_from_python_is_the_command(tmp_path, story):
    assert cli.main(train_words(story, tmp_path / "typed")) == 0
    run = ambidex.train(**{**TINY, "data": [str(story)], "out": str(tmp_path / "called")})
    a, b = (
        (p / "checkpoints/step-000012/model.safetensors").read_bytes() for p in (run.path, tmp_path / "typed")
    )
    assert a == b
    assert run.rows[-1].step == 12


def test_a_wrong_keyword_raises_problems_with_a_near_one():
    with pytest.raises(Problems, match="did you mean 'steps'"):
        ambidex.train(stepz=3)


def test_the_last_step_is_evaluated_sampled_and_saved_whatever_the_rhythm():
    for every in (1, 3, 7, 100):
        rhythm = Rhythm(10, every, every, every)
        assert rhythm.evaluates(10)
        assert rhythm.samples(10)
        assert rhythm.saves(10)


def test_the_choice_of_precision_goes_by_instruction_set():
    from ambidex.device.machine import Cpu

    cpu = Choice("cpu", "")
    assert launch.rule(cpu, Cpu(isa=("avx2", "avx512_bf16")))[0] == "bf16"
    assert launch.rule(cpu, Cpu(isa=("amx_bf16", "amx_tile")))[0] == "bf16"
    assert launch.rule(cpu, Cpu(isa=("avx2",)))[0] == "fp32"


def test_fp16s_scale_shrinks_at_an_overflow_and_the_step_is_skipped(trainer):
    from ambidex.engine import LossScale

    trainer.scale = LossScale(1024.0, moves=True)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    clip = trainer.optimizer.clip_gradients
    trainer.optimizer.clip_gradients = lambda scale: float("inf")
    trainer.update()
    assert trainer.scale.value == 512.0
    assert all(torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    trainer.optimizer.clip_gradients = clip
    trainer.update()
    assert not torch.equal(before["model.norm.weight"], trainer.model.model.norm.weight)


@pytest.mark.parametrize("first", [float("nan"), float("inf")])
def test_a_validation_loss_that_is_no_number_is_not_the_best_and_costs_no_checkpoint(
    tmp_path, story, monkeypatch, first
):
    evaluate = Trainer.evaluate

    def overflowing(self, limit_tokens=0):
        loss = evaluate(self, limit_tokens)
        return first if self.step == 4 else loss

    monkeypatch.setattr(Trainer, "evaluate", overflowing)
    assert cli.main(train_words(story, tmp_path / "run", save_every=4)) == 0
    assert cli.main(["checkpoints", str(tmp_path / "run"), "--json"]) == 0
    for step in (4, 8, 12):
        checkpoint.load(tmp_path / "run" / "checkpoints" / f"step-{step:06d}")


def test_the_trial_steps_of_time_leave_no_trace_in_the_weights(story, tmp_path):
    timed = make_trainer(story, tmp_path, residual_init=0.0, ngrams=3, grow_from=1, time=5.0)
    before = {name: weight.clone() for name, weight in timed.model.state_dict().items()}
    launch.take_time(timed)
    after = timed.model.state_dict()
    assert all(torch.equal(weight, after[name]) for name, weight in before.items())
    assert timed.model.model.depth == 1


def test_the_trial_steps_of_time_leave_no_trace_in_the_loss_scale(trainer):
    trainer.scale = LossScale(4.0, moves=True, steps_since_change=0)
    trainer.device.loss_scale = lambda: LossScale(4.0, moves=True)
    trainer.settings = trainer.settings.model_copy(update={"time": 5.0})
    trainer.skipped_in_a_row = 2
    launch.take_time(trainer)
    assert trainer.scale == LossScale(4.0, moves=True)
    assert trainer.skipped_in_a_row == 0


def test_a_loss_that_ends_above_where_it_began_is_said_to(tmp_path, story, capsys):
    assert cli.main(train_words(story, tmp_path / "far", steps=6, learning_rate=10)) == 0
    assert "that is worse than at the first step" in capsys.readouterr().out
    assert cli.main(train_words(story, tmp_path / "near", steps=6)) == 0
    assert "worse" not in capsys.readouterr().out
