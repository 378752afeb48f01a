"""Compiled passes compute what torch's operations compute, the same bits with any number of threads, or are not used."""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ambidex import cli, derivatives, engine, launch, optim
from ambidex.cardfile import CARD
from ambidex.device.choose import choose
from ambidex.engine import COMPILED, TORCHS_OWN, Device
from ambidex.fused import compiler
from ambidex.fused.operations import Fused
from ambidex.fused.passes import Passes
from ambidex.products import Operations
from tiny import train_words

CPU = "this one"
LOW = torch.bfloat16
TYPES = [torch.float32, LOW]


@pytest.fixture(scope="session")
def fused() -> Fused:
    operations, why_not = engine.fused_operations()
    if not isinstance(operations, Fused):
        pytest.skip(f"no compiled passes here: {why_not}")
    return operations


def numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def both_ways(operation: Callable[..., Tensor], *leaves: Tensor) -> list[Tensor]:
    """What comes out, and the gradient of a fixed sum of it by each leaf."""
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    out = operation(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, numbers(*out.shape, dtype=out.dtype, seed=9))]


def alike(found: list[Tensor], wanted: list[Tensor]) -> None:
    """To rounding: of fp32, or of the bf16 that goes in or comes out."""
    coarse = 2**-7 if any(tensor.dtype == LOW for tensor in wanted) else 1e-5
    for one, other in zip(found, wanted, strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        size = float(other.double().abs().mean()) + 1e-6
        assert float((one.double() - other.double()).abs().max()) < coarse * (
            8 * size + float(other.double().abs().max())
        )


def everything(
    dtype: torch.dtype, batch: int, length: int, heads: int, half: int
) -> dict[str, Callable[[Operations], list[Tensor]]]:
    width = 2 * half
    wide = numbers(batch, length, 3 * heads * width, dtype=dtype)
    in_heads = wide[..., : heads * width].view(batch, length, heads, width)  # as it lies in a joined product
    gate, up = wide[..., :half], wide[..., half : 2 * half]
    tables = (
        numbers(length, half, seed=1).repeat(1, 2),
        numbers(length, half, seed=2).repeat(1, 2),
    )  # alike in both halves
    by_head = [numbers(batch, heads, length, width, dtype=dtype, seed=n) for n in (3, 4, 5)]
    scale = numbers(width, seed=6)
    return {
        "norm": lambda how: both_ways(
            lambda x, w: how.rms_norm(x, w, 1e-6), numbers(batch, length, width), scale
        ),
        "norm of heads": lambda how: both_ways(lambda x, w: how.rms_norm(x, w, 1e-6), in_heads, scale),
        "rotation": lambda how: both_ways(
            lambda x: how.rotate(x, *tables, dtype), numbers(batch, length, heads, width)
        ),
        "swiglu": lambda how: both_ways(how.swiglu, gate, up),
        "attention": lambda how: both_ways(how.causal_attention, *by_head),
    }


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(batch=st.integers(1, 3), length=st.integers(1, 40), heads=st.integers(1, 3), half=st.integers(1, 40))
@settings(max_examples=15, deadline=None)
def test_every_pass_and_its_gradients_are_torchs_own_to_rounding(
    fused: Fused, dtype: torch.dtype, batch: int, length: int, heads: int, half: int
) -> None:
    for name, by in everything(dtype, batch, length, heads, half).items():
        try:
            alike(by(fused), by(derivatives))
        except AssertionError as error:
            raise AssertionError(name) from error


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("length", [255, 256, 600])
def test_attention_is_right_across_the_blocks_that_it_is_made_in(
    fused: Fused, dtype: torch.dtype, length: int
) -> None:
    by_head = [numbers(1, 2, length, 8, dtype=dtype, seed=n) for n in (3, 4, 5)]
    plain = both_ways(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), *by_head)
    alike(both_ways(fused.causal_attention, *by_head), plain)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(
    rows=st.integers(1, 9),
    classes=st.integers(1, 5000),
    size=st.sampled_from([0.1, 1.0, 60.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25, deadline=None)
def test_the_loss_and_its_gradient_are_torchs_own(
    fused: Fused, dtype: torch.dtype, rows: int, classes: int, size: float, seed: int
) -> None:
    logits = (size * numbers(rows, classes, seed=seed)).to(dtype)
    targets = torch.randint(-1, classes, (rows,), generator=torch.Generator().manual_seed(seed))
    exact = logits.double().requires_grad_()
    wanted = F.cross_entropy(exact, targets, ignore_index=-1, reduction="sum")
    (by_logits,) = torch.autograd.grad(wanted, exact)
    untouched = logits.clone()
    found = fused.cross_entropy(untouched, targets, -1, False, lambda _: untouched)
    assert torch.equal(untouched, logits)
    assert float(found) == pytest.approx(float(wanted.detach()), rel=1e-5, abs=1e-5 * rows)
    fused.cross_entropy(logits, targets, -1, True, lambda _: logits)
    assert float((logits.double() - by_logits).abs().max()) < (2**-8 if dtype == LOW else 1e-5)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@given(
    count=st.integers(1, 4),
    rows=st.integers(1, 70),
    columns=st.integers(1, 90),
    keep=st.sampled_from([0.5, 0.95]),
)
@settings(max_examples=25, deadline=None)
def test_muons_step_around_its_products_is_torchs_own_to_rounding(
    fused: Fused, dtype: torch.dtype, count: int, rows: int, columns: int, keep: float
) -> None:
    gradients, momenta, weights = (
        [numbers(rows, columns, seed=10 * n + k) for k in range(count)] for n in range(3)
    )
    found: list[list[Tensor]] = []
    for by in (fused, optim):
        moved, stepped = ([tensor.clone() for tensor in tensors] for tensors in (momenta, weights))
        stack = by.directions(gradients, moved, keep, dtype)
        by.move(stepped, numbers(count, rows, columns, dtype=dtype), 0.99, 0.1)
        found.append([stack, *moved, *stepped])
    alike(*found)


def test_muons_step_around_its_products_leaves_no_element_out_of_large_matrices(fused: Fused) -> None:
    gradients, momenta = [numbers(3, 70_001)], [torch.zeros(3, 70_001)]
    stack = fused.directions(gradients, momenta, 0.9, torch.float32)
    alike(
        [stack, *momenta],
        [optim.directions(gradients, again := [torch.zeros(3, 70_001)], 0.9, torch.float32), *again],
    )
    weights = [torch.zeros(3, 70_001)]
    fused.move(weights, stack, 1.0, -1.0)
    assert torch.equal(weights[0], stack[0])


def test_muons_step_refuses_what_it_would_read_beyond(fused: Fused) -> None:
    with pytest.raises(ValueError, match="needed"):
        fused.directions([numbers(2, 3)], [numbers(2, 2)], 0.9, torch.float32)
    with pytest.raises(ValueError, match="needed"):
        fused.move([numbers(2, 3).double()], numbers(1, 2, 3), 1.0, 0.1)


@pytest.mark.parametrize("keep", [0.9, 0.95, 0.99, 0.999])
def test_a_momentum_from_zero_is_that_share_of_the_gradient(fused: Fused, keep: float) -> None:
    gradient, momentum = numbers(64, 64), torch.zeros(64, 64)
    fused.directions([gradient], [momentum], keep, torch.float32)
    assert torch.allclose(momentum.double(), gradient.double() * (1 - keep), rtol=2**-22, atol=0)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(fused: Fused, dtype: torch.dtype) -> None:
    before = torch.get_num_threads()
    try:
        by_threads = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            passes = everything(dtype, 2, 130, 2, 24)
            del passes["attention"]  # its products are torch's
            by_threads.append([tensor for by in passes.values() for tensor in by(fused)])
            by_threads[-1].append(
                fused.directions([numbers(300, 200)], [numbers(300, 200, seed=1)], 0.9, dtype)
            )
    finally:
        torch.set_num_threads(before)
    for other in by_threads[1:]:
        assert all(map(torch.equal, by_threads[0], other))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_become_a_number(fused: Fused, dtype: torch.dtype, bad: float) -> None:
    x = numbers(2, 24, dtype=dtype)
    x[1, 5] = bad
    weight = torch.ones(24)
    logits, targets = x.clone(), torch.tensor([0, 5])
    for found in (fused.rms_norm(x, weight, 1e-6), fused.swiglu(x, x), fused.rotate(x.view(2, 1, 1, 24).float(), weight[None],
                  weight[None], dtype).view(2, 24)):  # fmt: skip
        assert found[0].isfinite().all()
        assert not found[1].isfinite().all()
    assert not fused.cross_entropy(logits, targets, -100, True, lambda _: logits).isfinite()
    assert logits[0].isfinite().all()
    assert not logits[1].isfinite().all()


def test_rounding_to_bf16_is_torchs(fused: Fused) -> None:
    bits = torch.arange(-(2**31), 2**31, 65_521, dtype=torch.int64).to(torch.int32)
    every_kind = torch.cat([bits.view(torch.float32), torch.tensor([0.0, -0.0, 3.4e38, 1e-45, float("inf")])])
    every_kind = every_kind[~every_kind.isnan()].view(-1, 1, 1, 1).repeat(1, 1, 1, 2)
    ones, zeros = torch.ones(1, 2), torch.zeros(1, 2)
    assert torch.equal(
        fused.rotate(every_kind, ones, zeros, LOW)[every_kind.isfinite()],
        every_kind.to(LOW)[every_kind.isfinite()],
    )


def test_a_device_can_be_asked_for_torchs_own_and_says_which_it_took() -> None:
    assert Device("cpu", "fp32", 1, fused=False).between_products() == TORCHS_OWN
    device = Device("cpu", "fp32", 1)
    assert device.products is not None
    compiled = isinstance(device.products.operations, Fused)
    assert device.between_products().startswith(COMPILED if compiled else TORCHS_OWN)
    assert bool(device.why_not_fused) is not compiled


# What becomes of a machine where it cannot be, and who is trusted.


@pytest.fixture
def compiled(fused: Fused, tmp_path: Path) -> Callable[..., compiler.Built]:
    return lambda **environment: compiler.build(tmp_path / "cache", CPU, {**os.environ, **environment})


def tool(path: Path, *lines: str) -> str:
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


def test_it_is_compiled_once_and_kept_for_this_user_alone(compiled: Callable[..., compiler.Built]) -> None:
    first = compiled()
    assert first.path is not None
    assert first.folder is None
    made = first.path.stat().st_mtime_ns
    assert compiled().path == first.path
    assert first.path.stat().st_mtime_ns == made
    assert stat.S_IMODE(first.path.stat().st_mode) == 0o700
    assert list(first.path.parent.iterdir()) == [first.path]  # nothing is left of the making


def test_what_others_could_have_written_is_not_loaded(compiled: Callable[..., compiler.Built]) -> None:
    first = compiled()
    assert first.path is not None
    first.path.chmod(0o777)
    first.path.write_bytes(b"a stranger's")
    again = compiled()
    assert again.path == first.path
    assert again.path.read_bytes() != b"a stranger's"


def test_a_file_that_others_may_write_is_not_loaded_even_where_it_was_swapped_in_later(
    compiled: Callable[..., compiler.Built],
) -> None:
    built = compiled()
    assert built.path is not None
    built.path.chmod(0o770)
    with pytest.raises(OSError, match="by others"):
        Passes(built.path)
    elsewhere = built.path.rename(built.path.with_name("elsewhere.so"))
    elsewhere.chmod(0o700)
    built.path.symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        Passes(built.path)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_file_is_not_loaded(compiled: Callable[..., compiler.Built], damage: str) -> None:
    built = compiled()
    assert built.path is not None
    whole = built.path.read_bytes()
    flipped = bytes([*whole[:9000], whole[9000] ^ 4, *whole[9001:]])
    built.path.write_bytes({"cut": whole[:12_000], "flipped": flipped, "empty": b""}[damage])
    with pytest.raises(OSError, match="not as it was made"):
        Passes(built.path)


def test_what_the_passes_do_not_know_is_refused_rather_than_read_as_something_else(fused: Fused) -> None:
    passes = fused.passes
    with pytest.raises(TypeError, match="float64"):
        passes.rms_norm(torch.ones(2, 4, dtype=torch.float64), torch.ones(4), 1e-6)
    with pytest.raises(ValueError, match="in a row"):
        passes.rotate(torch.ones(1, 8, 1, 4), torch.ones(3, 4), torch.ones(3, 4), torch.float32)
    with pytest.raises(IndexError, match="no class"):
        passes.cross_entropy(torch.ones(2, 10), torch.tensor([1, 10]), -100, True)
    with pytest.raises(ValueError, match="targets"):
        passes.cross_entropy(torch.ones(2, 10), torch.tensor([1]), -100, True)


def test_a_programs_default_type_changes_nothing(fused: Fused) -> None:
    gradient = (torch.ones(2, 4), torch.ones(2, 4), torch.ones(4), torch.ones(2))
    wanted = fused.passes.rms_norm_back(*gradient)
    torch.set_default_dtype(torch.float64)
    try:
        found = fused.passes.rms_norm_back(*gradient)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(map(torch.equal, found, wanted))


def test_a_run_goes_on_with_what_it_began_with(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    assert cli.main([*train_words(story, out, steps=2), "--no-fused"]) == 0
    card = json.loads((out / CARD).read_text())
    assert card["between_products"] == TORCHS_OWN
    card["config"]["fused"] = True  # as the card of a version before there was a choice is read
    del card["between_products"]
    asked = []
    monkeypatch.setattr(
        launch, "Device", lambda *a, fused, **k: asked.append(fused) or Device(*a, fused=fused, **k)
    )
    choice = choose("cpu", "flag")
    for between, wanted in ((None, False), (TORCHS_OWN, False), (f"{COMPILED} 0123456789ab", True)):
        with_it = card if between is None else {**card, "between_products": between}
        launch.prepare_device(choice, launch.settings_of(with_it), with_it)
        assert asked[-1] is wanted


def test_another_code_than_before_is_said(
    story: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert cli.main(train_words(story, out, steps=2)) == 0
    card = {**json.loads((out / CARD).read_text()), "between_products": f"{COMPILED} 0123456789ab"}
    monkeypatch.setattr(engine, "fused_operations", lambda: (derivatives, "no C compiler is installed (gcc)"))
    capsys.readouterr()
    launch.prepare_device(choose("cpu", "flag"), launch.settings_of(card), card)
    said = capsys.readouterr()
    assert "passes 0123456789ab: the last bits may be others" in said.out + said.err


def test_without_a_place_to_keep_it_it_is_compiled_for_this_process_alone(
    fused: Fused,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    built = compiler.build(tmp_path / "file", CPU, os.environ)
    assert built.path is not None
    assert built.folder == built.path.parent
    Passes(built.path, remove=built.folder)
    assert not built.folder.exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["echo 'no such flag' >&2", "exit 1"], "no such flag"),
        (['exec cc -Drms_norm=other "$@"'], "could not make them"),
        (['exec cc -Dsqrtf=fabsf "$@"'], "could not make them"),
    ],
    ids=["fails", "lacks a function", "computes something else"],
)
def test_a_compiler_that_does_not_serve_is_named_and_training_goes_on(
    compiled: Callable[..., compiler.Built], tmp_path: Path, lines: list[str], said: str
) -> None:
    built = compiled(CC=tool(tmp_path / "odd-cc", *lines))
    assert built.path is None
    assert "odd-cc" in built.why_not
    assert said in built.why_not
    assert not list((tmp_path / "cache" / "passes").iterdir())


def test_without_a_compiler_it_says_so(compiled: Callable[..., compiler.Built]) -> None:
    built = compiled(CC="/no/such/compiler")
    assert built.path is None
    assert "/no/such/compiler, which is not there" in built.why_not
    assert compiler.build(None, CPU, {"CC": "gcc 'half"}).why_not.startswith("CC cannot be understood")


def test_another_processor_or_source_is_another_name(
    compiled: Callable[..., compiler.Built], tmp_path: Path
) -> None:
    first, other = (compiler.build(tmp_path, name, os.environ).path for name in ("one", "another"))
    assert first is not None
    assert other is not None
    assert first.name != other.name


def test_elsewhere_than_on_linux_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    built = compiler.build(None, CPU, os.environ)
    assert built.path is None
    assert "Linux" in built.why_not


def test_a_compiler_that_knows_one_flag_less_is_given_the_others(tmp_path: Path) -> None:
    picky, asked = tmp_path / "picky", tmp_path / "asked"
    picky.write_text(
        f"""#!/bin/sh
for flag in "$@"; do case $flag in -mprefer*) echo "cc: error: unrecognized command-line option '$flag'" >&2; exit 1;; esac; done
echo "$@" >> {asked}
exec gcc "$@"
"""
    )
    picky.chmod(0o755)
    built = compiler.build(tmp_path / "cache", "flags\t: avx avx512f", {**os.environ, "CC": str(picky)})
    assert built.path is not None, built.why_not
    assert "-fno-thread-jumps" in asked.read_text()
