"""The guard: asking for CUDA while the CPU is forced is an error that names the line, and leaves no trace behind."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.cuda.memory
import torch.cuda.random

import ambidex
from ambidex import cli
from ambidex.errors import Exit, Problems
from ambidex.guard import CudaRefused, cpu_guard
from ambidex.optim import AdamW

WAYS: dict[str, Callable[[], object]] = {
    "a tensor's .cuda()": lambda: torch.zeros(2).cuda(),
    ".to with a name": lambda: torch.zeros(2).to("cuda"),
    ".to with a device": lambda: torch.zeros(2).to(torch.device("cuda", 0)),
    "a factory": lambda: torch.zeros(2, device="cuda"),
    "from data": lambda: torch.tensor([1.0], device="cuda:0"),
    "a like-factory": lambda: torch.empty_like(torch.zeros(2), device="cuda"),
    "a module": lambda: torch.nn.Linear(2, 2).cuda(),
    "init": lambda: (torch.cuda.init(),),
    "current_device": lambda: (torch.cuda.current_device(),),
    "synchronize": lambda: (torch.cuda.synchronize(),),
    "the random state": lambda: (torch.cuda.get_rng_state(),),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_cuda_is_refused_with_the_line_that_asked(way: str) -> None:
    with cpu_guard(["--device cpu"]), pytest.raises(CudaRefused) as refused:
        WAYS[way]()
    found = refused.value.problems[0].found
    assert f"{__file__}, line " in found
    assert "lambda" in found  # the line itself is quoted
    assert "forced by --device cpu" in str(refused.value)
    assert refused.value.exit_code == Exit.USAGE


def test_overriding_is_available_stops_nothing_and_the_guard_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises((AssertionError, RuntimeError)) as without:
        torch.zeros(2).cuda()  # goes all the way to the driver, or to a build that has none
    assert not isinstance(without.value, Problems)
    with cpu_guard(["torch.cuda.is_available overridden in code"]), pytest.raises(CudaRefused):
        torch.zeros(2).cuda()


def test_a_library_is_named_together_with_the_line_that_called_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ambidex.guard._LIBRARIES", (str(tmp_path),))
    library = tmp_path / "a_library.py"
    library.write_text("import torch\n\ndef load():\n    return torch.zeros(1).to(torch.device('cuda'))\n")
    module = ModuleType("a_library")
    exec(compile(library.read_text(), str(library), "exec"), module.__dict__)
    with cpu_guard(["--device cpu"]), pytest.raises(CudaRefused) as refused:
        module.load()
    found = refused.value.problems[0].found
    assert found.startswith(f"{library}, line 4: return torch.zeros(1)")
    assert f"called from {__file__}, line " in found


def test_code_that_copes_without_a_gpu_copes_with_the_guard() -> None:
    def pick() -> str:
        try:
            return str(torch.zeros(1).cuda().device)
        except (AssertionError, RuntimeError):
            return "cpu"

    with cpu_guard(["--device cpu"]):
        assert pick() == "cpu"


def test_nothing_is_left_behind_after_an_error_either() -> None:
    before = {m: m._lazy_init for m in (torch.cuda, torch.cuda.memory, torch.cuda.random)}  # type: ignore[attr-defined]
    with pytest.raises(ZeroDivisionError), cpu_guard(["--device cpu"]):
        assert all(m._lazy_init is not original for m, original in before.items())
        raise ZeroDivisionError
    assert all(m._lazy_init is original for m, original in before.items())


def test_without_force_there_is_no_guard() -> None:
    before = torch.cuda._lazy_init
    with cpu_guard(()):
        assert torch.cuda._lazy_init is before


def test_threads_share_the_guard_until_the_last_one_leaves() -> None:
    before, failures = torch.cuda._lazy_init, []
    begin = threading.Barrier(8)

    def trainings(number: int) -> None:
        order = random.Random(number)
        begin.wait()
        for _ in range(50):
            with cpu_guard([f"thread {number}"]):
                for _ in range(order.randrange(3)):
                    try:
                        torch.cuda.init()
                    except CudaRefused:
                        continue
                    except BaseException as error:
                        failures.append(error)
                        return
                    failures.append(AssertionError("CUDA was let through"))

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=trainings, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch)
    assert not failures
    assert torch.cuda._lazy_init is before


def test_the_cpu_still_computes_under_guard() -> None:
    # Our AdamW and not torch's: making one of those imports torch's compiler, which up to torch 2.5 imports setuptools,
    # whose stand-in for distutils can refuse to be imported in the middle of a test run.
    with cpu_guard(["--device cpu"]):
        model = torch.nn.Linear(4, 4)
        before = model.weight.detach().clone()
        torch.manual_seed(1)
        optimizer = AdamW(dict(model.named_parameters()), betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.0)
        model(torch.ones(2, 4)).sum().backward()
        optimizer.step(0.1)
    assert not torch.equal(model.weight, before)


TINY = {
    "layers": 1, "width": 8, "heads": 1, "kv_heads": 1, "feed_forward": 8, "context": 8, "batch_size": 2,
    "steps": 2, "sample_tokens": 0, "optimizer": "adamw",
}  # fmt: skip


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AMBIDEX_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 40)
    return str(path)


def test_a_leak_within_training_from_python_is_refused_by_name(text: str, tmp_path: Path) -> None:
    def leak(module: torch.nn.Module, inputs: object, output: object) -> None:
        torch.ones(1).cuda()

    hook = torch.nn.modules.module.register_module_forward_hook(leak)
    before = torch.cuda._lazy_init
    try:
        with pytest.raises(CudaRefused, match='the argument device="cpu"') as refused:
            ambidex.train(data=[text], device="cpu", out=str(tmp_path / "run"), **TINY)
    finally:
        hook.remove()
    assert "torch.ones(1).cuda()" in str(refused.value)
    assert torch.cuda._lazy_init is before


def test_a_leak_under_the_command_ends_in_a_sentence_and_exit_code_2(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: torch.ones(1).cuda())
    flags = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    try:
        code = cli.main(["train", "--data", text, "--device", "cpu", "--out", str(tmp_path / "run"), *flags])
    finally:
        hook.remove()
    shown = capsys.readouterr()
    assert code == Exit.USAGE
    assert shown.out.startswith("device   cpu: forced by --device cpu")
    assert shown.err.startswith("error: CUDA was asked for while the CPU is forced.")
    assert "Traceback" not in shown.err


def test_a_training_that_asks_for_nothing_is_left_alone(text: str, tmp_path: Path) -> None:
    run = ambidex.train(data=[text], device="cpu", out=str(tmp_path / "run"), **TINY)
    assert run.card["device"]["forced_by"] == ['the argument device="cpu"']
    assert run.finished()


def test_a_checkpoint_saved_from_cuda_is_refused_in_words_and_loads_where_it_is_mapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A stand-in: no GPU wrote it, but its storage says that it lay on one, as a file saved there does.
    path = tmp_path / "from-cuda.pt"
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    torch.save({"w": torch.arange(3.0)}, path)
    monkeypatch.undo()
    with cpu_guard(["--device cpu"]):
        with pytest.raises((RuntimeError, Problems)) as refused:
            torch.load(path, weights_only=True)
        assert "map_location" in str(refused.value) or "forced by --device cpu" in str(refused.value)
        loaded = torch.load(path, weights_only=True, map_location="cpu")
    assert torch.equal(loaded["w"], torch.arange(3.0))
