"""What CUDA_VISIBLE_DEVICES leaves visible is what CUDA itself would leave visible."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from built_machines import RTX_3090, RTX_5060, a_build
from hypothesis import given, settings
from hypothesis import strategies as st

from ambidex.device import hiding, rules
from ambidex.device.machine import Driver, Gpu, Machine

# Measured on torch 2.13.0's own parser.
MEASURED = {
    "": (),
    "-1": (),
    "none": (),
    "void": (),
    "all": (),
    "0,-1,1": (0,),
    "0,0": (),
    "1gpu2": (1,),
    "1gpu2,2ampere": (1, 2),
    "0, 1": (0, 1),
    " 2": (2,),
    "+1": (1,),
    "3,x,1": (3,),
    "GPU-aa,GPU-bb": ("GPU-aa", "GPU-bb"),
    "GPU-aa,1": ("GPU-aa",),
    "GPU-aa,GPU-aa": (),
    "MIG-aa": ("MIG-aa",),
}


@pytest.mark.parametrize(("value", "devices"), MEASURED.items())
def test_a_value_is_read_as_torch_reads_it(value: str, devices: tuple[int | str, ...]) -> None:
    assert hiding.parse(value) == devices


@settings(deadline=None)
@given(st.text(alphabet="0123456789,-+ agGPUMI", max_size=24))
def test_any_value_is_read_as_the_installed_torch_reads_it(value: str) -> None:
    cuda = pytest.importorskip("torch.cuda")
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = value
    try:
        theirs = tuple(cuda._parse_visible_devices())
    except ValueError:  # torch itself falls over "+"
        return
    finally:
        os.environ.pop("CUDA_VISIBLE_DEVICES")
        if before is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
    assert hiding.parse(value) == theirs


@settings(deadline=None)
@given(st.text())
def test_no_value_at_all_breaks_the_parser(value: str) -> None:
    hiding.parse(value)


def seen(environ: dict[str, str], *gpus: Gpu, os_name: str = "linux") -> list[bool]:
    return [gpu.visible for gpu in hiding.mark(gpus, environ, os_name)]


def test_unset_hides_nothing_and_empty_hides_all() -> None:
    assert seen({}, RTX_5060, RTX_3090) == [True, True]
    assert seen({"CUDA_VISIBLE_DEVICES": ""}, RTX_5060, RTX_3090) == [False, False]
    assert seen({"CUDA_VISIBLE_DEVICES": ""}, RTX_5060, os_name="windows") == [True]


def test_a_uuid_prefix_names_its_gpu_and_an_ambiguous_one_names_none() -> None:
    assert seen({"CUDA_VISIBLE_DEVICES": "GPU-bbbb"}, RTX_5060, RTX_3090) == [False, True]
    assert seen({"CUDA_VISIBLE_DEVICES": "GPU-"}, RTX_5060, RTX_3090) == [False, False]


def test_numbers_follow_the_order_that_cuda_was_told() -> None:
    older_first = (Gpu("old", (8, 6), 0, "GPU-1"), Gpu("new", (12, 0), 1, "GPU-2"))
    assert seen({"CUDA_VISIBLE_DEVICES": "0"}, *older_first) == [False, True]
    by_bus = {"CUDA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert seen(by_bus, *older_first) == [True, False]


def test_a_number_that_no_gpu_has_ends_the_list() -> None:
    assert seen({"CUDA_VISIBLE_DEVICES": "7,0"}, RTX_5060) == [False]


def test_a_slice_of_a_gpu_hides_only_what_it_surely_hides() -> None:
    assert seen({"CUDA_VISIBLE_DEVICES": "MIG-1234"}, RTX_5060, RTX_3090) == [True, True]
    parent = f"MIG-{RTX_3090.uuid}/1/0"
    assert seen({"CUDA_VISIBLE_DEVICES": parent}, RTX_5060, RTX_3090) == [False, True]


def test_two_prefixes_of_one_gpu_empty_the_list_as_a_repeated_number_does() -> None:
    assert seen({"CUDA_VISIBLE_DEVICES": "GPU-bb,GPU-bbbb"}, RTX_5060, RTX_3090) == [False, False]


def test_the_mask_gives_the_numbers_and_without_one_the_order_does() -> None:
    gpus = (RTX_3090, RTX_5060)
    assert hiding.numbered(gpus, {}) == (RTX_5060, RTX_3090)
    by_bus = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,0"}
    assert hiding.numbered(gpus, by_bus) == (RTX_3090, RTX_5060)
    assert hiding.numbered(gpus, {**by_bus, "CUDA_VISIBLE_DEVICES": f"MIG-{RTX_3090.uuid}/1/0"}) == gpus[::-1]


def test_a_mask_hides_only_where_it_leaves_a_gpu_out_or_may() -> None:
    gpus = (RTX_5060, RTX_3090)
    said = {
        value: hiding.hides(gpus, {"CUDA_VISIBLE_DEVICES": value}) for value in ("1,0", "0", "", "MIG-aa")
    }
    assert said == {"1,0": False, "0": True, "": True, "MIG-aa": True}
    assert not hiding.hides(gpus, {})


def with_variable(name: str, value: str, listed: str, version: str = "2.9.0+cu130") -> Machine:
    build = a_build(version, "13.0", listed)
    return Machine(build=build, gpus=(RTX_5060,), driver=Driver("590.44.01"), env={name: value})


@pytest.mark.parametrize(
    ("name", "listed"),
    [("CUDA_FORCE_PTX_JIT", "sm_90 sm_120"), ("CUDA_DISABLE_PTX_JIT", "sm_80 sm_90 compute_90")],
)
def test_a_variable_that_keeps_cuda_from_the_builds_code_is_the_cause_and_the_fix_unsets_it(
    name: str, listed: str
) -> None:
    found = rules.judge(with_variable(name, "1", listed))
    assert (found.cause.id, found.exit_code, found.verdict) == ("ARCH_NONE", 20, "none")
    assert found.cause.text.startswith(f"{name}='1'")
    assert [fix.commands for fix in found.fixes] == [(f"unset {name}",)]
    assert found.gpus[0].verdict.kind == "none"
    assert found.usable == ()
    assert rules.judge(replace(with_variable(name, "1", listed), env={})).exit_code == 0


@pytest.mark.parametrize(
    ("name", "value", "listed"),
    [
        ("CUDA_FORCE_PTX_JIT", "0", "sm_90 sm_120"),
        ("CUDA_FORCE_PTX_JIT", "", "sm_90 sm_120"),
        ("CUDA_FORCE_PTX_JIT", "1", "sm_120 compute_120"),
        ("CUDA_DISABLE_PTX_JIT", "1", "sm_120 compute_120"),
    ],
)
def test_a_variable_that_leaves_code_for_the_gpu_is_no_cause(name: str, value: str, listed: str) -> None:
    assert rules.judge(with_variable(name, value, listed)).cause.id == "OK"


def test_a_slices_own_name_hides_the_gpus_that_have_no_slices() -> None:
    a100, v100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 0, "GPU-80"), Gpu("Tesla V100", (7, 0), 1, "GPU-70")
    marked = hiding.mark((a100, v100), {"CUDA_VISIBLE_DEVICES": "MIG-1234"})
    assert [gpu.visible for gpu in marked] == [True, False]


@pytest.mark.parametrize(("listed", "driver"), [("sm_80 sm_90", "590.44.01"), ("sm_90 sm_120", "575.51.03")])
def test_a_hidden_gpu_that_would_not_run_either_is_mended_on_both_counts(listed: str, driver: str) -> None:
    hidden = replace(RTX_5060, visible=False)
    machine = Machine(
        build=a_build("2.13.0+cu130", "13.0", listed),
        gpus=(hidden,),
        driver=Driver(driver),
        env={"CUDA_VISIBLE_DEVICES": "-1"},
    )
    first, *both = rules.judge(machine).fixes
    assert first.commands == ("unset CUDA_VISIBLE_DEVICES",)
    assert "does not run on it even so" in first.why
    assert both
    for fix in both:
        assert fix.commands[0] == "unset CUDA_VISIBLE_DEVICES"
        shown = (replace(hidden, visible=True),)
        newer = Driver(fix.requires.get("driver", driver))
        assert (
            rules.judge(
                replace(machine, build=fix.build or machine.build, gpus=shown, driver=newer)
            ).exit_code
            == 0
        )
