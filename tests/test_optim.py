import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ambidex.model import LanguageModel, Shape, initialise
from ambidex.optim import Optimizer, Schedule, gradient_norm, gradient_norm_at_once, orthogonalise

SHAPE = Shape(vocabulary_size=19, layers=2, width=16, heads=2, kv_heads=1, feed_forward=24, context=8)


def model_and_optimizer(
    kind: str, clip: float = 1.0, weight_decay: float = 0.1
) -> tuple[LanguageModel, Optimizer]:
    model = LanguageModel(SHAPE)
    initialise(model, 0)
    optimizer = Optimizer(model, kind=kind, betas=(0.9, 0.95), epsilon=1e-8, momentum=0.95,
                          weight_decay=weight_decay, clip=clip)  # fmt: skip
    return model, optimizer


def set_gradients(model: LanguageModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("elements", [3, 4096, 40_000_001])
def test_the_norm_is_right_where_torchs_own_is_low(elements):
    gradient = torch.ones(elements)
    gradient[0] = 3.0
    exact = math.sqrt(elements - 1 + 9)
    assert float(gradient_norm([gradient])) == pytest.approx(exact, rel=1e-6)


def test_clipping_brings_the_norm_down_to_the_limit_and_returns_the_norm_before():
    model, optimizer = model_and_optimizer("adamw", clip=0.5)
    set_gradients(model, 1)
    before = float(gradient_norm([p.grad for p in model.parameters()]))
    assert optimizer.clip_gradients() == pytest.approx(before)
    assert float(gradient_norm([p.grad for p in model.parameters()])) == pytest.approx(0.5, rel=1e-5)


def test_a_norm_below_the_limit_and_a_limit_of_zero_leave_every_bit_alone():
    for clip in (1e9, 0.0):
        model, optimizer = model_and_optimizer("adamw", clip=clip)
        set_gradients(model, 1)
        before = [p.grad.clone() for p in model.parameters()]
        optimizer.clip_gradients()
        assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters()))


def test_the_loss_scale_is_undone_before_clipping():
    model, optimizer = model_and_optimizer("adamw", clip=0.5)
    set_gradients(model, 1)
    plain = optimizer.clip_gradients()
    wanted = [p.grad.clone() for p in model.parameters()]
    set_gradients(model, 1)
    for parameter in model.parameters():
        parameter.grad.mul_(1024)
    assert optimizer.clip_gradients(1024.0) == pytest.approx(plain, rel=1e-6)
    assert all(torch.allclose(a, p.grad, rtol=1e-5, atol=0) for a, p in zip(wanted, model.parameters()))


def test_adamw_is_the_published_update():
    model, optimizer = model_and_optimizer("adamw")
    weight = model.model.layers[0].mlp.up_proj.weight
    w, m, v = weight.detach().double().numpy().copy(), 0.0, 0.0
    for step in range(1, 4):
        set_gradients(model, step)
        g = weight.grad.double().numpy().copy()
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        w = w * (1 - 1e-2 * 0.1)
        w = w - 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.95**step)) + 1e-8)
        optimizer.step(1e-2)
    assert np.allclose(weight.detach().numpy(), w, rtol=1e-5, atol=1e-7)


def test_matrices_are_decayed_and_norm_weights_are_not():
    model, optimizer = model_and_optimizer("adamw", weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        kept = 1.0 if parameter.ndim == 1 else 1 - 0.1 * 0.5
        assert torch.allclose(parameter, before[name] * kept, rtol=1e-6, atol=0), name


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99))
def test_orthogonalised_matrices_have_singular_values_near_one_and_the_same_directions(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(1, rows, columns, generator=generator)
    u, s, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    if s[-1] / s[0] < 0.02:
        return  # so small a value takes more iterations than Muon makes
    result = orthogonalise(matrix / matrix.norm())[0]
    core = u.T @ result @ vh.T
    assert torch.diagonal(core).min() > 0.3
    assert torch.diagonal(core).max() < 1.3
    assert (core - torch.diag(torch.diagonal(core))).abs().max() < 1e-3


def test_muon_steps_the_blocks_matrices_and_adamw_the_rest():
    _, optimizer = model_and_optimizer("muon")
    by_muon = {name.removeprefix("momentum.") for name in optimizer.shapes() if name.startswith("momentum.")}
    assert "model.layers.1.self_attn.o_proj.weight" in by_muon
    assert not {name for name in by_muon if "norm" in name or "embed" in name or "lm_head" in name}
    assert f"exp_avg.{'model.embed_tokens.weight'}" in optimizer.shapes()


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_saved_and_loaded_moments_continue_with_the_same_bits(kind):
    straight, straight_optimizer = model_and_optimizer(kind)
    for step in range(4):
        set_gradients(straight, step)
        straight_optimizer.step(1e-2)
    first, first_optimizer = model_and_optimizer(kind)
    for step in range(2):
        set_gradients(first, step)
        first_optimizer.step(1e-2)
    second, second_optimizer = model_and_optimizer(kind)
    second.load_state_dict(first.state_dict())
    second_optimizer.load(first_optimizer.state(), first_optimizer.steps_taken)
    for step in range(2, 4):
        set_gradients(second, step)
        second_optimizer.step(1e-2)
    for (name, a), b in zip(straight.named_parameters(), second.parameters()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_holds_exactly_what_shapes_announces(kind):
    model, optimizer = model_and_optimizer(kind)
    set_gradients(model, 0)
    optimizer.step(1e-2)
    assert {name: tuple(t.shape) for name, t in optimizer.state().items()} == optimizer.shapes()


@given(
    st.sampled_from(["cosine", "wsd"]), st.integers(1, 400), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)
)
def test_the_rate_is_never_above_the_peak_nor_negative_and_reaches_the_peak(
    kind, steps, warmup, decay, floor
):
    schedule = Schedule(kind, 1e-3, steps, warmup, decay, floor)
    rates = [schedule.at(step) for step in range(steps)]
    assert all(0 <= rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    if kind == "cosine":
        assert max(rates) == pytest.approx(1e-3)


def test_the_cosine_ends_at_its_floor_and_wsd_stays_at_the_peak_until_its_end():
    cosine = Schedule("cosine", 1.0, 1000, 0.1, 0.0, 0.1)
    assert cosine.at(0) == pytest.approx(0.01)
    assert cosine.at(99) == pytest.approx(1.0)
    assert cosine.at(999) == pytest.approx(0.1, abs=1e-3)
    wsd = Schedule("wsd", 1.0, 1000, 0.1, 0.2, 0.0)
    assert wsd.at(799) == wsd.at(100) == 1.0
    assert wsd.at(900) == pytest.approx(0.5)


def test_the_norm_that_many_tensors_have_at_once_is_the_norm() -> None:
    gradients = [torch.randn(300, 7), torch.zeros(3), torch.randn(5)]
    assert float(gradient_norm_at_once(gradients)) == pytest.approx(float(gradient_norm(gradients)), rel=1e-6)
