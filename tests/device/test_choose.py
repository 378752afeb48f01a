"""The device policy: never silent, never swapped, and every way that forces the CPU told apart."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest import mock

import pytest
from built_machines import RTX_3090, RTX_5060, a_build, cpu_build, probed, some_facts

from ambidex.device.choose import Choice, choose
from ambidex.device.facts import Facts
from ambidex.device.machine import Gpu
from ambidex.device.probe import DeviceProbe, Probe
from ambidex.errors import Problems

CU128 = a_build("2.11.0+cu128", "12.8", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")


def decide(
    requested: str = "auto",
    origin: str = "default",
    *,
    facts: Facts | None = None,
    probe: Probe | None = None,
    environ: dict[str, str] | None = None,
    modules: dict[str, ModuleType] | None = None,
    asked: dict[str, str] | None = None,
    os_name: str = "linux",
) -> Choice:
    def look() -> Facts:
        assert facts is not None, "nobody needed to look at the machine"
        return facts

    def run() -> Probe:
        assert probe is not None, "no child process was worth starting"
        return probe

    return choose(
        requested,
        origin,
        asked=asked,
        environ=environ or {},
        modules=modules or {},
        os_name=os_name,
        see=look,
        run_probe=run,
    )


def works(gpu: Gpu, number: int) -> DeviceProbe:
    return DeviceProbe(f"cuda:{number}", True, gpu.name, gpu.uuid, gpu.cc, 0.2)


def dies(gpu: Gpu, number: int, cause: str = "no_kernel_image") -> DeviceProbe:
    text = 'add failed: "CUDA error: no kernel image is available for execution on the device"'
    return DeviceProbe(f"cuda:{number}", False, gpu.name, gpu.uuid, gpu.cc, 0.0, "add", cause, text)


def a_torch(answer: object) -> dict[str, ModuleType]:
    """sys.modules after a program set ``torch.cuda.is_available``."""
    cuda = SimpleNamespace(
        __file__="/site-packages/torch/cuda/__init__.py", is_available=answer, _initialized=False
    )
    return {"torch": SimpleNamespace(cuda=cuda), "torch.cuda": cuda}  # type: ignore[dict-item]


def test_a_gpu_is_taken_only_after_its_kernels_ran() -> None:
    facts = some_facts(CU128, [RTX_5060])
    taken = decide(facts=facts, probe=probed(works(RTX_5060, 0)))
    assert taken.name == "cuda:0"
    assert RTX_5060.name in taken.reason
    refused = decide(facts=facts, probe=probed(dies(RTX_5060, 0)))
    assert refused.name == "cpu"
    assert "no kernel image" in refused.reason


def test_a_mixed_box_gives_its_usable_gpu_and_names_both() -> None:
    facts = some_facts(a_build(), [RTX_5060, RTX_3090])
    choice = decide(facts=facts, probe=probed(dies(RTX_5060, 0), works(RTX_3090, 1)))
    assert choice.name == "cuda:1"
    assert RTX_3090.name in choice.reason
    assert RTX_5060.name in choice.reason
    assert any(RTX_3090.uuid in notice for notice in choice.notices)


def test_a_cpu_build_needs_no_child_process_and_says_so() -> None:
    choice = decide(facts=some_facts(cpu_build()))
    assert choice.name == "cpu"
    assert "2.13.0+cpu" in choice.reason
    assert not choice.forced_by


def test_a_cuda_build_without_any_sign_of_a_gpu_needs_no_child_process() -> None:
    assert decide(facts=some_facts(CU128)).name == "cpu"


def test_a_broken_torch_is_never_started() -> None:
    choice = decide(facts=some_facts(a_build(broken="torch/version.py is missing"), [RTX_3090]))
    assert choice.name == "cpu"
    assert "version.py" in choice.reason


@pytest.mark.parametrize("value", ["", "-1", "none", "void"])
def test_way_1_an_empty_mask_forces_the_cpu(value: str) -> None:
    choice = decide(environ={"CUDA_VISIBLE_DEVICES": value})
    assert choice.name == "cpu"
    assert choice.decided_by == f'CUDA_VISIBLE_DEVICES="{value}" in the environment'


def test_way_1_on_windows_an_empty_mask_hides_nothing_and_is_mentioned() -> None:
    facts = some_facts(cpu_build(), os="windows")
    choice = decide(environ={"CUDA_VISIBLE_DEVICES": ""}, os_name="windows", facts=facts)
    assert not choice.forced_by
    assert any("-1" in notice for notice in choice.notices)
    assert decide(environ={"CUDA_VISIBLE_DEVICES": "-1"}, os_name="windows").forced_by


def wrapped() -> bool:
    return False


wrapped.__name__, wrapped.__module__ = "is_available", "torch.cuda"  # as functools.wraps leaves it


@pytest.mark.parametrize("override", [lambda: False, mock.Mock(return_value=False), wrapped])
def test_way_2_an_overridden_is_available_forces_the_cpu(override: object) -> None:
    choice = decide(modules=a_torch(override))
    assert choice.name == "cpu"
    assert choice.decided_by == "torch.cuda.is_available overridden in code"


def test_way_2_an_override_that_says_yes_decides_nothing() -> None:
    choice = decide(modules=a_torch(lambda: True), facts=some_facts(cpu_build()))
    assert choice.name == "cpu"
    assert not choice.forced_by
    assert any("overridden" in notice for notice in choice.notices)


def test_way_2_is_seen_in_a_real_torch_and_only_there() -> None:
    program = (
        "import sys\n"
        "from ambidex.device.choose import forced_to_cpu\n"
        "assert forced_to_cpu({}) == () and 'torch' not in sys.modules\n"
        "import torch\n"
        "assert forced_to_cpu({}) == ()\n"
        "torch.cuda.is_available = lambda: False\n"
        "print(forced_to_cpu({}))\n"
    )
    pytest.importorskip("torch")
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "overridden in code" in ran.stdout, ran.stderr


@pytest.mark.parametrize(
    ("origin", "words"),
    [
        ("flag", "--device cpu"),
        ("argument", 'the argument device="cpu"'),
        ("toml", 'device = "cpu" in the TOML file'),
        ("environment", "AMBIDEX_DEVICE=cpu"),
    ],
)
def test_ways_3_and_4_an_explicit_cpu_looks_at_no_gpu(origin: str, words: str) -> None:
    choice = decide("cpu", origin)
    assert (choice.name, choice.decided_by) == ("cpu", words)
    assert words in choice.reason


def test_all_ways_at_once_are_all_named_and_the_one_that_decided_is_said() -> None:
    choice = decide(
        "cpu",
        "flag",
        asked={"toml": "cpu"},
        environ={"CUDA_VISIBLE_DEVICES": "", "AMBIDEX_DEVICE": "cpu"},
        modules=a_torch(lambda: False),
    )
    assert choice.decided_by == "--device cpu"
    assert len(choice.forced_by) == 5
    for way in choice.forced_by:
        assert way in choice.reason


def test_the_origin_that_won_is_the_one_that_decided() -> None:
    choice = decide("cpu", "toml", environ={"AMBIDEX_DEVICE": "cpu"})
    assert choice.decided_by == 'device = "cpu" in the TOML file'
    assert "AMBIDEX_DEVICE=cpu" in choice.reason


def test_a_cpu_that_a_flag_overruled_is_not_in_force() -> None:
    environ = {"AMBIDEX_DEVICE": "cpu"}
    assert not decide("auto", "flag", environ=environ, facts=some_facts(cpu_build())).forced_by
    choice = decide("auto", "flag", environ={**environ, "CUDA_VISIBLE_DEVICES": ""})
    assert choice.forced_by == ('CUDA_VISIBLE_DEVICES="" in the environment',)


def test_a_mask_set_after_cuda_started_is_called_without_effect() -> None:
    modules = a_torch(lambda: False)
    modules["torch.cuda"]._initialized = True  # type: ignore[attr-defined]
    choice = decide(environ={"CUDA_VISIBLE_DEVICES": "-1"}, modules=modules)
    assert any("had started" in notice for notice in choice.notices)


@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "mps"])
def test_a_device_asked_for_by_name_is_never_swapped(wanted: str) -> None:
    with pytest.raises(Problems) as refused:
        decide(wanted, "flag", facts=some_facts(cpu_build()))
    assert refused.value.exit_code == 10
    assert wanted in str(refused.value)


def test_a_named_gpu_that_is_hidden_is_refused_with_the_doctors_code() -> None:
    with pytest.raises(Problems) as refused:
        decide(
            "cuda",
            "flag",
            environ={"CUDA_VISIBLE_DEVICES": ""},
            facts=some_facts(CU128, [replace(RTX_5060, visible=False)]),
        )
    assert refused.value.exit_code == 23
    assert "CUDA_VISIBLE_DEVICES" in str(refused.value)


def test_a_number_that_no_gpu_has_is_refused() -> None:
    with pytest.raises(Problems):
        decide("cuda:5", "flag", facts=some_facts(CU128, [RTX_5060]), probe=probed(works(RTX_5060, 0)))


def test_a_named_gpu_on_a_mixed_box_is_that_one_or_none() -> None:
    facts = some_facts(a_build(), [RTX_5060, RTX_3090])
    found = probed(dies(RTX_5060, 0), works(RTX_3090, 1))
    assert decide("cuda:1", "flag", facts=facts, probe=found).name == "cuda:1"
    with pytest.raises(Problems) as refused:
        decide("cuda:0", "flag", facts=facts, probe=found)
    assert refused.value.exit_code == 20


def test_a_gpu_hidden_by_code_alone_is_refused_too() -> None:
    with pytest.raises(Problems) as refused:
        decide("cuda", "argument", modules=a_torch(lambda: False), facts=some_facts(CU128, [RTX_5060]))
    assert refused.value.exit_code == 23
    assert "is_available" in str(refused.value)


@pytest.mark.parametrize("word", ["gpu", "cudaa", "cuda:", "cuda:-1", "", "0", "cuda:1:2", "cuda:99999"])
def test_a_word_that_is_no_device_exits_2_with_what_is_accepted(word: str) -> None:
    with pytest.raises(Problems) as refused:
        decide(word, "toml")
    assert refused.value.exit_code == 2
    assert "cuda:N" in str(refused.value)
    assert "TOML" in str(refused.value)


def test_the_answer_on_a_machine_without_a_gpu_takes_milliseconds(tmp_path: Path) -> None:
    choose()  # the first call pays for cold files
    began = time.perf_counter()
    choice = choose(environ={"PATH": str(tmp_path)})
    assert choice.name == "cpu" or choice.name.startswith("cuda")
    if choice.name == "cpu" and "CPU build" in choice.reason:
        assert time.perf_counter() - began < 1.0
