"""Every fast path computes what its plain form computes, and the same bits each time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambidex import derivatives, loss, products
from ambidex.device import cpu as processor
from ambidex.engine import Device, exact_products, keep_pages, numerics
from ambidex.loss import IGNORED, cross_entropy_sum
from ambidex.model import Cache, LanguageModel, Shape, initialise
from ambidex.optim import Optimizer, orthogonalise
from ambidex.products import Products

EXACT = Products(low=None, onednn=False)
ONEDNN = Products(low=None, onednn=True)
MIXED = Products(low=None, onednn=True, weights_by_default=True)
LOW = Products(low=torch.bfloat16, onednn=False)
SMALL = Shape(vocabulary_size=96, layers=2, width=64, heads=4, kv_heads=2, feed_forward=96, context=48)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def model(shape: Shape = SMALL) -> LanguageModel:
    made = LanguageModel(shape)
    initialise(made, seed=1)
    return made


def batch(shape: Shape = SMALL, sequences: int = 3) -> tuple[Tensor, Tensor]:
    text = torch.randint(shape.vocabulary_size, (sequences, shape.context + 1),
                         generator=torch.Generator().manual_seed(2))  # fmt: skip
    return text[:, :-1], text[:, 1:]


def loss_and_gradients(
    trained: LanguageModel, how: Products | None, inputs: Tensor, targets: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    trained.zero_grad()
    if how is None:
        summed = cross_entropy_sum(trained, trained(inputs), targets) / targets.numel()
        summed.backward()
    else:
        with products.using(how):
            summed = cross_entropy_sum(trained, trained(inputs), targets) / targets.numel()
        summed.backward()
    return summed.detach(), {n: p.grad.clone() for n, p in trained.named_parameters() if p.grad is not None}


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def both_gradients(fast: Tensor, plain: Tensor, *leaves: Tensor) -> list[tuple[Tensor, Tensor]]:
    outer = numbers(*plain.shape, seed=9).to(plain.dtype)
    of_fast = torch.autograd.grad(fast, leaves, outer.to(fast.dtype))
    return list(zip(of_fast, torch.autograd.grad(plain, leaves, outer)))


def needs_onednn() -> None:
    if not products.has_onednn_product():
        pytest.skip("this build of torch has no oneDNN product")


@pytest.mark.parametrize("how", [EXACT, ONEDNN, MIXED], ids=["exact", "onednn", "mixed"])
@pytest.mark.parametrize("tied", [True, False])
def test_in_fp32_loss_and_every_gradient_are_the_plain_models_to_rounding(how: Products, tied: bool) -> None:
    if how.onednn:
        needs_onednn()
    trained = model(Shape(96, 2, 64, 4, 2, 96, 48, tied=tied))
    wanted, plain = loss_and_gradients(trained, None, *batch())
    found, fast = loss_and_gradients(trained, how, *batch())
    assert abs(float(found - wanted)) < 1e-6
    assert fast.keys() == plain.keys()
    assert max(error(fast[name], plain[name]) for name in plain) < 1e-5


def test_in_bf16_loss_and_gradients_are_as_near_to_fp32_as_autocasts_own() -> None:
    trained = model()
    exact, plain = loss_and_gradients(trained, None, *batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        autocast, by_autocast = loss_and_gradients(trained, None, *batch())
    found, fast = loss_and_gradients(trained, LOW, *batch())
    assert abs(float(found - exact)) < max(2e-3, 2 * abs(float(autocast - exact)))
    for name, wanted in plain.items():
        assert fast[name].dtype == torch.float32
        assert error(fast[name], wanted) < 1.5 * error(by_autocast[name], wanted) + 2e-3, name


@pytest.mark.parametrize("how", [EXACT, LOW], ids=["fp32", "bf16"])
def test_the_same_step_gives_the_same_bits(how: Products) -> None:
    first, once = loss_and_gradients(model(), how, *batch())
    second, again = loss_and_gradients(model(), how, *batch())
    assert torch.equal(first, second)
    assert all(torch.equal(once[name], again[name]) for name in once)


@pytest.mark.parametrize("how", [EXACT, LOW], ids=["fp32", "bf16"])
def test_writing_with_a_cache_gives_the_logits_of_the_whole_text(how: Products) -> None:
    trained, (inputs, _) = model(), batch(sequences=1)
    with torch.no_grad(), products.using(how):
        whole = trained.logits(trained(inputs)).float()
        cache, parts = Cache(), []
        for piece in (inputs[:, :40], *inputs[:, 40:].split(1, dim=1)):
            parts.append(trained.logits(trained(piece, cache)).float())
    assert error(torch.cat(parts, dim=1), whole) < (1e-5 if how is EXACT else 2e-2)


def test_a_weight_written_by_anyone_is_used_by_the_next_forward_pass() -> None:
    trained, (inputs, _) = model(), batch()
    with products.using(LOW):
        before = trained(inputs).detach()
        trained.model.layers[0].self_attn.q_proj.weight.data.mul_(3.0)  # bumps no version counter
        assert not torch.equal(trained(inputs).detach(), before)


@pytest.mark.parametrize("rows", [1, 7, 64, 10_000])
def test_the_loss_in_chunks_is_cross_entropy_whatever_the_chunk(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss, "LOGITS", rows * SMALL.vocabulary_size)
    trained, (_, targets) = model(), batch()
    targets = targets.clone()
    targets[0, 5:9] = IGNORED
    hidden = numbers(*targets.shape, SMALL.width).requires_grad_()
    plain = cross_entropy_sum(trained, hidden, targets)
    with products.using(EXACT):
        fast = cross_entropy_sum(trained, hidden, targets)
    torch.testing.assert_close(fast, plain, rtol=1e-6, atol=0)
    for found, wanted in both_gradients(fast, plain, hidden, trained.lm_head.weight):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_the_loss_of_an_answer_given_no_chance_is_large_and_not_infinite() -> None:
    trained, (_, targets) = model(), batch()
    hidden = 4000 * numbers(*targets.shape, SMALL.width)
    plain = cross_entropy_sum(trained, hidden, targets)
    with products.using(EXACT):
        fast = cross_entropy_sum(trained, hidden, targets)
    assert float(plain.detach()) > 100 * targets.numel()
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=0)


def test_the_loss_needs_no_gradient_to_be_measured() -> None:
    trained, (inputs, targets) = model(), batch()
    with torch.no_grad(), products.using(LOW):
        assert float(cross_entropy_sum(trained, trained(inputs), targets)) > 0


@pytest.mark.parametrize("width", [8, 64])
def test_the_norms_derivative_is_the_plain_norms(width: int) -> None:
    x = numbers(5, 3, width).requires_grad_()
    weight = (1 + 0.1 * numbers(width, seed=3)).requires_grad_()
    plain = F.rms_norm(x, (width,), weight, 1e-6)
    fast = derivatives.rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(fast, plain)
    for found, wanted in both_gradients(fast, plain, x, weight):
        torch.testing.assert_close(found, wanted)


def test_a_rotation_and_its_derivative_are_the_plain_ones() -> None:
    from ambidex.model import rotate, rotation_tables

    x = numbers(2, 6, 3, 8).requires_grad_()
    cosine, sine = rotation_tables(6, 8, 10_000.0)
    plain = rotate(x.transpose(1, 2), cosine, sine)
    fast = derivatives.rotate(x, cosine, sine, torch.float32)
    torch.testing.assert_close(fast, plain)
    for found, wanted in both_gradients(fast, plain, x):
        torch.testing.assert_close(found, wanted)


def test_swiglus_derivative_is_the_plain_ones() -> None:
    gate, up = numbers(4, 10).requires_grad_(), numbers(4, 10, seed=5).requires_grad_()
    for found, wanted in both_gradients(derivatives.swiglu(gate, up), F.silu(gate) * up, gate, up):
        torch.testing.assert_close(found, wanted)


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 5), min_size=1, max_size=4), moved=st.integers(0, 5))
def test_parts_of_one_tensor_in_their_order_are_joined_without_a_copy_and_others_as_torch_joins_them(
    widths: list[int], moved: int
) -> None:
    whole = numbers(2, 3, sum(widths))
    parts = list(torch.split(whole, widths, dim=-1))
    joined = products.side_by_side(parts)
    assert torch.equal(joined, whole)
    assert joined.data_ptr() == whole.data_ptr()
    parts = parts[moved % len(parts) :] + parts[: moved % len(parts)]
    assert torch.equal(products.side_by_side(parts), torch.cat(parts, dim=-1))
    parts[-1] = parts[-1].clone()
    assert torch.equal(products.side_by_side(parts), torch.cat(parts, dim=-1))
    halves = list(
        whole.repeat(1, 1, 2).split(sum(widths), dim=-1)
    )  # rows that lie further apart than both are wide
    assert torch.equal(products.side_by_side(halves[:1]), halves[0])


def test_a_sequence_of_one_block_keeps_its_weights_and_has_the_gradients_of_one_that_makes_them_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []
    softmax = derivatives.Softmax(
        lambda *a: made.append(a) or derivatives._weights(*a), derivatives._weights_back
    )
    found = []
    for queries in (8, 7):
        monkeypatch.setattr(derivatives, "QUERIES", queries)
        q, k, v = (numbers(1, 2, 8, 4, seed=seed).requires_grad_() for seed in range(3))
        out = derivatives.attention_by(softmax, q, k, v)
        found.append([out, *torch.autograd.grad(out, (q, k, v), numbers(1, 2, 8, 4, seed=9))])
    assert len(made) == 1 + 2 * 2
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [2, 31, 32, 33, 100])
def test_attention_by_blocks_is_attention_at_every_length(
    length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(derivatives, "QUERIES", 32)
    q, k, v = (numbers(2, 3, length, 8, seed=seed).requires_grad_() for seed in range(3))
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    fast = derivatives.causal_attention(q, k, v)
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-5)
    for found, wanted in both_gradients(fast, plain, q, k, v):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 16, 48), (2, 48, 16), (2, 32, 32)])
def test_orthogonalising_in_bf16_gives_the_singular_values_of_fp32(shape: tuple[int, int, int]) -> None:
    exact, low = (
        torch.linalg.svdvals(orthogonalise(numbers(*shape) / (shape[1] * shape[2]) ** 0.5, dtype).float())
        for dtype in (torch.float32, torch.bfloat16)
    )
    torch.testing.assert_close(low, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_small_model_learns_as_well_by_the_fast_paths_as_by_the_plain_ones(
    kind: str, precision: str
) -> None:
    device = Device("cpu", precision, threads=1)

    def last_loss(fast: bool) -> float:
        trained = model()
        optimizer = Optimizer(trained, kind=kind, betas=(0.9, 0.95), epsilon=1e-8, momentum=0.95, weight_decay=0.1,
                              clip=1.0, products=device.muon_precision() if fast else torch.float32)  # fmt: skip
        pattern = torch.arange(49).repeat(4, 1) * torch.tensor([[1], [2], [3], [5]]) % SMALL.vocabulary_size
        for _ in range(25):
            how = device.products if fast else None
            found, _ = loss_and_gradients(trained, how, pattern[:, :-1], pattern[:, 1:])
            optimizer.clip_gradients()
            optimizer.step(5e-3)
        return float(found)

    fast, plain = last_loss(fast=True), last_loss(fast=False)
    assert plain < 2.0  # from 4.6: it learns
    assert abs(fast - plain) < (1e-3 if precision == "fp32" else 0.05)


def test_the_precision_and_the_library_are_chosen_by_rule() -> None:
    assert Device("cpu", "fp16", threads=1).products is None
    exact, low = (Device("cpu", precision, threads=1, fused=False).products for precision in ("fp32", "bf16"))
    onednn = exact_products() == "oneDNN"
    mixed = onednn and processor.family() == 25
    assert exact == Products(low=None, onednn=onednn, weights_by_default=mixed)
    assert low == Products(low=torch.bfloat16, onednn=onednn, weights_by_default=mixed)
    also = ", torch's default for the gradients of weights" if mixed else ""
    assert numerics()["fp32_products"] == exact_products() + also


def test_outside_of_a_choice_layers_compute_in_torchs_plain_way() -> None:
    assert products.chosen() is None
    with products.using(LOW):
        assert products.chosen() is LOW
    assert products.chosen() is None


def test_keeping_pages_says_whether_it_could() -> None:
    assert keep_pages() in (True, False)


def test_a_model_that_cannot_be_compiled_here_is_trained_as_it_is_and_that_is_said(monkeypatch):
    def compile_(module):
        def forward(tokens):
            raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

        return forward

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setenv("CXX", "true")
    device, model = Device("cpu", "bf16", 1), torch.nn.Linear(2, 2)
    own = device.products
    forward, said = device.compiled(model, lambda forward: forward(torch.ones(1, 2)))
    assert forward is model
    assert device.products is own
    assert "Failed to find C compiler." in said
    assert "\n" not in said


def test_a_trial_of_a_compiled_model_that_takes_too_much_memory_is_no_reason_to_go_on_without(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module: module)
    monkeypatch.setenv("CXX", "true")

    def trial(forward):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Device("cpu", "bf16", 1).compiled(torch.nn.Linear(2, 2), trial)
