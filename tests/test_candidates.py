"""Sampled softmax: who is among the candidates, what each stands for, and that loss and gradient follow from that."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ambidex.candidates import draw
from ambidex.engine import Device
from ambidex.loss import Among, sampled_cross_entropy_sum
from ambidex.model import LanguageModel, Shape, initialise
from test_trainer import gradients_of, make_trainer

BATCHES = st.lists(st.integers(0, 96), min_size=1, max_size=60).map(
    lambda tokens: np.array(tokens, dtype=np.int64)
)


@given(BATCHES, st.integers(1, 200))
def test_every_target_is_a_candidate_for_itself_alone_and_together_they_stand_for_the_vocabulary(
    targets, one_in
):
    drawn = draw(targets, 97, one_in)
    assert (drawn.tokens[drawn.places(targets)] == targets).all()
    assert (drawn.log_weights[drawn.places(targets)] == 0).all()
    assert (np.diff(drawn.tokens) > 0).all()
    assert np.exp(drawn.log_weights.astype(np.float64)).sum() == pytest.approx(97, rel=1e-5)


@given(BATCHES)
def test_one_in_one_is_the_whole_vocabulary_as_it_is(targets):
    drawn = draw(targets, 97, 1)
    assert (drawn.tokens == np.arange(97)).all()
    assert not drawn.log_weights.any()


@given(BATCHES, st.integers(2, 20))
def test_each_other_token_is_drawn_once_as_the_batches_go_round(targets, one_in):
    held = np.unique(targets)
    others = np.setdiff1d(np.arange(97), held)
    # Batches with the same tokens whose sums differ by one: one token more, and others in its place.
    drawn = [
        set(draw(np.append(targets, held[:1].repeat(n)), 97, one_in).tokens) - set(held) for n in range(97)
    ]
    if np.gcd(int(held[0]), min(one_in, len(others))) == 1:
        assert set().union(*drawn) == set(others)
    assert all(
        len(one) in (len(others) // one_in, -(-len(others) // one_in))
        for one in drawn
        if one_in <= len(others)
    )


def small() -> LanguageModel:
    model = LanguageModel(Shape(97, 1, 16, 2, 1, 24, 12))
    initialise(model, seed=3)
    return model


@pytest.mark.parametrize("precision", ["fp32", "bf16", "plain"])
def test_loss_and_gradient_are_those_of_the_weighted_sum_under_the_softmax(precision):
    model = small()
    device = Device("cpu", "fp32" if precision == "plain" else precision, 1)
    if precision == "plain":
        device.products = None
    numbers = np.random.default_rng(0)
    targets = numbers.integers(0, 30, (3, 12))
    drawn = draw(targets, 97, 5)
    hidden = torch.from_numpy(numbers.normal(size=(3, 12, 16)).astype(np.float32)).requires_grad_()
    among = Among(torch.from_numpy(drawn.tokens), torch.from_numpy(drawn.log_weights))
    with device.autocast():
        loss = sampled_cross_entropy_sum(model, hidden, torch.from_numpy(drawn.places(targets)), among)
    loss.backward()
    found = hidden.grad, model.lm_head.weight.grad

    exact = hidden.detach().double().requires_grad_()
    head = model.lm_head.weight.detach().double().requires_grad_()
    logits = exact @ head.T
    weights = torch.zeros(97, dtype=torch.float64)
    weights[among.tokens] = among.log_weights.double().exp()
    given_logits = logits.gather(-1, torch.from_numpy(targets)[..., None]).squeeze(-1)
    wanted = ((logits.exp() * weights).sum(-1).log() - given_logits).sum()
    wanted.backward()
    allowed = 2e-2 if precision == "bf16" else 1e-5
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=allowed)
    for mine, theirs in zip(found, (exact.grad, head.grad)):
        assert float((mine - theirs).norm() / theirs.norm()) < allowed


def test_any_split_into_micro_batches_draws_the_same_candidates(story, tmp_path):
    whole = make_trainer(story, tmp_path, sampled_softmax=4)
    split = make_trainer(story, tmp_path, sampled_softmax=4, micro_batch_size=1)
    a, b = gradients_of(whole), gradients_of(split)
    for name, gradient in a.items():
        assert torch.allclose(gradient, b[name], rtol=1e-4, atol=1e-6), name


def test_the_mean_over_many_batches_is_near_the_loss_over_the_whole_vocabulary(story, tmp_path):
    sampled, whole = (make_trainer(story, tmp_path, sampled_softmax=one_in) for one_in in (3, 1))
    losses = np.array(
        [[t.accumulate(*t.batches.batch(step)) for t in (sampled, whole)] for step in range(40)]
    )
    apart = losses[:, 0] - losses[:, 1]
    assert abs(apart.mean()) < 0.02 * losses[:, 1].mean()
    assert abs(apart).max() > 0


def test_the_validation_loss_is_over_the_whole_vocabulary(story, tmp_path):
    sampled, whole = (make_trainer(story, tmp_path, sampled_softmax=one_in) for one_in in (4, 1))
    assert sampled.evaluate() == whole.evaluate()
