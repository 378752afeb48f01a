"""What an error says, what the environment says and what was seen are weighed against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from built_machines import RTX_3090, RTX_5060, a_build, cpu_build, probed, some_facts

from ambidex.device import container, fingerprints
from ambidex.device.doctor import diagnose
from ambidex.device.machine import Build, Container, Driver, Gpu
from ambidex.device.probe import DeviceProbe, Probe

CU128 = a_build("2.11.0+cu128", "12.8", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
CU121 = a_build()  # no code for the RTX 5060
NO_DRIVER = probed(cause="no_driver", text='CUDA could not start: "Found no NVIDIA driver on your system."')
NO_DEVICE = probed(cause="no_device", text='CUDA could not start: "No CUDA GPUs are available"')


def ran(gpu: Gpu, number: int = 0) -> DeviceProbe:
    return DeviceProbe(f"cuda:{number}", True, gpu.name, gpu.uuid, gpu.cc)


def without_libcuda(root: Path, kind: str = ".dockerenv") -> Container:
    """A container as NVIDIA_DRIVER_CAPABILITIES=utility leaves it."""
    for name in (kind, "dev/nvidiactl"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    return container.look(root, {"NVIDIA_DRIVER_CAPABILITIES": "utility"})


@pytest.mark.parametrize("probe", [None, NO_DRIVER], ids=["theory", "probe"])
@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_a_container_that_lists_its_gpu_and_has_no_libcuda_ends_in_22(
    tmp_path: Path, probe: Probe | None, device: str
) -> None:
    found = some_facts(CU128, [RTX_5060], container=without_libcuda(tmp_path))
    answer = diagnose(found, probe=probe, device=device)
    assert (answer.cause.id, answer.exit_code, answer.verdict) == ("CONTAINER_NO_GPU", 22, "none")
    assert RTX_5060.name in answer.cause.text
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in answer.fixes[0].commands[0]
    assert not [cause for cause in answer.also if cause.id == "NO_GPU"]


def test_the_way_out_is_the_container_kinds_own(tmp_path: Path) -> None:
    podman = some_facts(CU128, [RTX_5060], container=without_libcuda(tmp_path, "run/.containerenv"))
    assert "nvidia.com/gpu=all" in diagnose(podman).fixes[0].commands[0]
    pod = Container("kubernetes", False, without_libcuda(tmp_path).detail)
    (fix,) = diagnose(some_facts(CU128, [RTX_5060], container=pod)).fixes
    assert not fix.commands
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in fix.why


def test_a_kernel_that_ran_refutes_a_libcuda_that_was_not_found(tmp_path: Path) -> None:
    found = some_facts(CU128, [RTX_5060], container=without_libcuda(tmp_path))
    assert diagnose(found, probe=probed(ran(RTX_5060))).exit_code == 0


def test_a_cpu_build_needs_no_libcuda(tmp_path: Path) -> None:
    found = some_facts(cpu_build(), [RTX_5060], container=without_libcuda(tmp_path))
    assert diagnose(found).cause.id == "CPU_BUILD"


def test_no_error_text_turns_a_listed_gpu_into_none() -> None:
    for cause in ("no_driver", "libcuda_missing", "no_device"):
        answer = diagnose(some_facts(CU128, [RTX_5060]), probe=probed(cause=cause, text="words"))
        assert (answer.cause.id, answer.exit_code) == ("PROBE_FAILED", 30)


@pytest.mark.parametrize(
    ("cause", "known", "code"),
    [
        ("driver_mismatch", "PROBE_FAILED", 30),
        ("not_initialized", "PROBE_FAILED", 30),
        ("forward_compat", "PROBE_FAILED", 30),
        ("unknown_999", "PROBE_FAILED", 30),
        ("crashed", "PROBE_FAILED", 30),
        ("driver_old", "DRIVER_OLD", 21),
        ("no_driver", "NO_GPU", 0),
        ("no_device", "NO_GPU", 0),
    ],
)
def test_why_cuda_did_not_start_is_told_where_no_gpu_is_listed_too(cause: str, known: str, code: int) -> None:
    found = some_facts(CU128, driver=Driver("470.57"), nvidia=True)
    answer = diagnose(found, probe=probed(cause=cause, text="what CUDA said"))
    assert (answer.cause.id, answer.exit_code) == (known, code)
    if code:
        assert "what CUDA said" in answer.cause.text
    if cause in ("driver_mismatch", "not_initialized", "forward_compat", "unknown_999"):
        assert "Remedy: " in answer.cause.text
    if cause == "driver_old":
        assert answer.fixes[0].requires["driver"]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
        {"NVIDIA_VISIBLE_DEVICES": "all"},
        {"CUDA_VISIBLE_DEVICES": "0"},
    ],
)
def test_a_variable_that_hides_nothing_is_not_blamed(env: dict[str, str]) -> None:
    answer = diagnose(some_facts(CU128, [RTX_5060], env=env), probe=NO_DEVICE)
    assert (answer.cause.id, answer.exit_code, answer.fixes) == ("PROBE_FAILED", 30, ())


@pytest.mark.parametrize("value", ["1", "MIG-aaaa"])
def test_a_mask_that_may_hide_is_blamed_and_unset(value: str) -> None:
    env = {"CUDA_VISIBLE_DEVICES": value, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    answer = diagnose(some_facts(CU128, [RTX_5060], env=env), probe=NO_DEVICE)
    assert answer.cause.id == "HIDDEN_BY_ENV"
    assert answer.fixes[0].commands == ("unset CUDA_VISIBLE_DEVICES",)


def test_no_fix_is_a_fix_without_anything_to_do() -> None:
    gone = Gpu(RTX_5060.name, RTX_5060.cc, visible=False)
    answer = diagnose(some_facts(CU128, [gone]))
    assert answer.cause.id == "HIDDEN_BY_ENV"
    assert answer.fixes == ()


@pytest.mark.parametrize("mask", ["1,0", "GPU-bbbb,GPU-aaaa"])
def test_a_gpus_number_is_its_place_in_the_mask(mask: str) -> None:
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": mask}
    found = some_facts(CU121, [RTX_5060, RTX_3090], env=env)
    assert [diagnose(found, device=f"cuda:{number}").exit_code for number in (0, 1)] == [0, 20]


def test_a_probed_device_without_uuid_is_the_gpu_at_its_place_in_the_mask() -> None:
    alike = [Gpu("RTX 3090", (8, 6), index) for index in (0, 1)]
    env = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1,0"}
    died = DeviceProbe("cuda:1", False, "RTX 3090", cause="timeout", text="did not end")
    answer = diagnose(some_facts(CU128, alike, env=env), probe=probed(ran(alike[1]), died))
    assert {one.gpu.index: one.ran for one in answer.gpus} == {0: False, 1: True}


def test_a_rocm_build_without_its_gpu_says_no_more_than_that() -> None:
    assert fingerprints.cause_of("RuntimeError: No HIP GPUs are available") == "no_device"


CU130 = a_build("2.13.0+cu130", "13.0", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")
A100 = Gpu("NVIDIA A100-SXM4-40GB", (8, 0), 0, "GPU-80")


@pytest.mark.parametrize(
    ("gpu", "spoken", "cause"),
    [
        (A100, (13, 0), "OK"),  # cuda-compat 13.0 speaks for the driver, as in NVIDIA's own images
        (A100, (12, 2), "DRIVER_OLD"),
        (A100, None, "DRIVER_OLD"),
        (RTX_3090, (13, 0), "DRIVER_OLD"),  # forward compatibility is for datacentre GPUs: error 804
    ],
)
def test_a_newer_cuda_that_speaks_for_an_old_driver_counts_on_datacentre_gpus_alone(
    gpu: Gpu, spoken: tuple[int, int] | None, cause: str
) -> None:
    assert diagnose(some_facts(CU130, [gpu], Driver("535.54.03", spoken))).cause.id == cause


def test_no_forward_compatibility_makes_a_driver_know_a_gpu_that_is_newer_than_it() -> None:
    b200 = Gpu("NVIDIA B200", (10, 0), 0, "GPU-100")
    assert diagnose(some_facts(CU130, [b200], Driver("550.54.14", (13, 0)))).cause.id == "DRIVER_OLD"


def test_the_table_is_not_called_to_witness_for_a_gpu_of_amds() -> None:
    rocm = Build("2.9.0+rocm6.4", hip="6.4", archs=None, source="scanned")
    failed = DeviceProbe("cuda:0", False, "AMD Radeon RX 6600", "", (10, 3), operation="add")
    failed = replace(failed, cause="invalid_device_function", text='add failed: "invalid device function"')
    found = some_facts(rocm, amd=True)
    assert "table" not in diagnose(found, probe=probed(failed)).cause.why
    worked = diagnose(found, probe=probed(replace(failed, ok=True, cause="", text="")))
    assert worked.exit_code == 0
    assert "no kernel should start" not in worked.cause.text


def test_what_a_new_copy_of_torch_does_not_mend_is_said_before_it_is_offered() -> None:
    text = 'import torch failed: ImportError: "libc.so.6: version `GLIBC_2.28\' not found"'
    found = diagnose(some_facts(CU130, [A100]), probe=Probe(True, (), "import_failed", text))
    assert found.cause.id == "TORCH_BROKEN"
    assert "a newer Linux" in found.cause.text


def test_a_gpu_on_the_bus_without_a_driver_is_told_to_get_one() -> None:
    bare = some_facts(CU130)
    found = replace(bare, seen=replace(bare.seen, undriven=True))
    (fix,) = diagnose(found).fixes
    assert fix.requires == {"driver": "580"}
    assert "Install the NVIDIA driver" in fix.why
    assert diagnose(bare).fixes == ()
    (old,) = diagnose(replace(bare, seen=replace(bare.seen, undriven=True, last_driver="580"))).fixes
    assert "of the 580 branch" in old.why


def test_a_driver_that_is_too_new_for_the_gpu_is_to_be_replaced_by_an_older_one() -> None:
    bare = some_facts(CU130, driver=Driver("595.71.05", (13, 2)))
    found = diagnose(replace(bare, seen=replace(bare.seen, last_driver="580")))
    assert found.cause.id == "NO_GPU"
    assert "a driver of the 580 branch" in found.fixes[0].why
