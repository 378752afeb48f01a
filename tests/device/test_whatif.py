"""What is typed becomes a machine, or all that is wrong with it is said at once."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambidex.device import rules, whatif
from ambidex.device.doctor import doctor
from ambidex.device.machine import Arch, Build, Gpu, Machine
from ambidex.errors import Problems


def test_what_is_not_given_is_linux_x86_64_this_python_and_a_driver_new_enough() -> None:
    machine = whatif.machine_from(torch="2.5.1+cu121", gpu="RTX 5060")
    assert (machine.os, machine.machine) == ("linux", "x86_64")
    assert machine.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert rules.judge(machine).cause.id == "ARCH_NONE"


@pytest.mark.parametrize(
    ("torch", "os", "machine", "version", "cuda"),
    [
        ("2.5.1+cu121", "linux", "x86_64", "2.5.1+cu121", "12.1"),
        ("torch==2.5.1+cu121", "linux", "x86_64", "2.5.1+cu121", "12.1"),
        ("2.5.1", "linux", "x86_64", "2.5.1+cu124", "12.4"),
        ("2.15.0", "linux", "x86_64", "2.15.0+cu132", "13.2"),
        ("2.5", "linux", "x86_64", "2.5.0+cu124", "12.4"),
        ("cu121", "linux", "x86_64", "2.5.1+cu121", "12.1"),
        ("nightly-cu124", "linux", "x86_64", "2.7.0.dev20250310+cu124", "12.4"),
        ("2.13.0+cpu", "linux", "x86_64", "2.13.0+cpu", None),
        ("2.13.0", "windows", "x86_64", "2.13.0+cpu", None),
        ("2.10.0", "linux", "aarch64", "2.10.0+cpu", None),
        ("2.11.0", "linux", "aarch64", "2.11.0+cu130", "13.0"),
        ("2.7.0.dev20250310+cu124", "linux", "x86_64", "2.7.0.dev20250310+cu124", "12.4"),
    ],
)
def test_a_torch_without_a_tag_is_what_pypi_serves_there(
    torch: str, os: str, machine: str, version: str, cuda: str | None
) -> None:
    build = whatif.machine_from(torch=torch, os=os, machine=machine).build
    assert (build.version, build.cuda) == (version, cuda)
    assert build.archs is not None


@pytest.mark.parametrize(
    ("typed", "driver"),
    [
        ("576.02", "576.02"),
        ("580", "580"),
        ("570.124.06", "570.124.06"),
        ("R580", "580"),
        ("32.0.15.7602", "576.02"),
    ],
)
def test_a_driver_is_understood_as_it_is_printed(typed: str, driver: str) -> None:
    assert (
        whatif.machine_from(driver=driver).driver.version == whatif.machine_from(driver=typed).driver.version
    )


@pytest.mark.parametrize(
    ("typed", "python"),
    [("3.11", "3.11"), ("3.9.18", "3.9"), ("py3.12", "3.12"), ("3.13t", "3.13"), ("311", "3.11")],
)
def test_a_python_is_understood(typed: str, python: str) -> None:
    assert whatif.machine_from(python=typed).python == python


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("torch", "banana", ["no version of torch", "2.5.1+cu121"]),
        ("torch", "2.x", ["no version of torch"]),
        ("torch", "", ["no version of torch", "nothing"]),
        ("torch", "2.5.1+cu12a", ["'cu12a' is no variant", "cu121"]),
        ("torch", "2.5.1+cuda12", ["no variant", "cu118 to cu132"]),
        ("driver", "12.8", ["a CUDA version, by its looks", "576.02"]),
        ("driver", "new", ["no version of an NVIDIA driver", "'new'"]),
        ("driver", "99999", ["no version of an NVIDIA driver"]),
        ("driver", "-580", ["no version of an NVIDIA driver"]),
        ("python", "2.7", ["no Python 3", "3.11"]),
        ("python", "snake", ["no Python 3"]),
        ("os", "widows", ["did you mean 'windows'?"]),
        ("machine", "arm65", ["did you mean 'arm64'?", "x86_64 or aarch64"]),
        ("gpu", "RTX 5065", ["did you mean GeForce RTX 5060"]),
        ("gpu", "RTX 5060, RTX 9", ["'RTX 9'"]),
    ],
)
def test_nonsense_exits_2_with_what_was_understood_and_what_is_accepted(
    flag: str, value: str, words: list[str]
) -> None:
    with pytest.raises(Problems) as caught:
        whatif.machine_from(**{flag: value})
    assert caught.value.exit_code == 2
    for word in words:
        assert word in str(caught.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(Problems) as caught:
        whatif.machine_from(torch="x", gpu="y", driver="z", python="p", os="q", machine="r")
    assert len(caught.value.problems) == 6


@given(st.sampled_from(["torch", "gpu", "driver", "python", "os", "machine"]), st.text(max_size=20))
@settings(max_examples=150, deadline=None)
def test_no_text_at_all_ends_in_anything_but_a_machine_or_problems(flag: str, value: str) -> None:
    wrong: Problems | None = None
    try:
        machine = whatif.machine_from(**{flag: value})
    except Problems as caught:
        wrong = caught
    if wrong is None:
        assert rules.judge(machine).cause.text
    else:
        assert wrong.exit_code == 2
        assert all(problem.what and problem.wanted for problem in wrong.problems)


def test_several_gpus_are_separated_by_commas() -> None:
    machine = whatif.machine_from(torch="2.5.1+cu121", gpu="V100, RTX 5090")
    assert [(gpu.index, gpu.cc) for gpu in machine.gpus] == [(0, (7, 0)), (1, (12, 0))]


def test_a_gpu_of_arm_computers_makes_the_machine_one_unless_it_is_said() -> None:
    assert whatif.machine_from(torch="2.15.0", gpu="Jetson Thor").machine == "aarch64"
    assert whatif.machine_from(torch="2.15.0", gpu="Jetson Thor", machine="x86_64").machine == "x86_64"
    assert whatif.machine_from(torch="2.15.0", gpu="GB10,RTX 5060").machine == "x86_64"


@pytest.mark.parametrize(
    ("torch", "gpu"), [("2.8.0+cu128", "GB10"), ("2.5.1+cu121", "Thor"), ("2.8.0+cu129", "Thor")]
)
def test_a_gpu_of_arm_computers_is_never_judged_by_what_others_have(torch: str, gpu: str) -> None:
    found = rules.judge(whatif.machine_from(torch=torch, gpu=gpu, python="3.11"))
    assert (found.cause.id, found.exit_code) == ("UNKNOWN_BUILD", 30)
    assert found.fixes, "the table has builds for Arm"


@pytest.mark.parametrize(("driver", "code"), [("527.56", 21), ("528.33", 0)])
@pytest.mark.parametrize("os", ["wsl", "WSL2", "windows"])
def test_in_wsl_the_driver_is_windows_own(os: str, driver: str, code: int) -> None:
    found = whatif.machine_from(torch="2.5.1+cu121", gpu="T4", os=os, driver=driver)
    assert rules.judge(found).exit_code == code
    assert whatif.machine_from(os=os).os == ("windows" if os == "windows" else "linux")


def test_torch_and_gpus_that_are_not_given_are_taken_from_here() -> None:
    here = Machine(
        build=Build("2.6.0+cu124", "12.4", archs=(Arch("sm", 8, 6),)), gpus=(Gpu("RTX 3090", (8, 6)),)
    )
    assert whatif.machine_from(driver="580", here=here).gpus == here.gpus
    supposed = whatif.machine_from(gpu="RTX 5060", here=here)
    assert (supposed.build, supposed.gpus[0].cc) == (here.build, (12, 0))
    assert whatif.machine_from(torch="2.15.0", here=here).build.version == "2.15.0+cu132"


def test_without_a_torch_the_answer_is_what_to_install() -> None:
    found = rules.judge(whatif.machine_from(gpu="RTX 5060", driver="576.02", python="3.11"))
    assert (found.exit_code, found.fixes[0].installs) == (24, ("torch==2.11.0+cu128",))


def test_it_is_said_that_a_nightly_channel_has_ended() -> None:
    found = rules.judge(whatif.machine_from(torch="nightly-cu124", gpu="RTX 5090", driver="570.124.06"))
    assert "nightly/cu124, ended on 2025-03-10" in found.cause.why
    assert "CUDA 12.4 predates this GPU" in found.cause.why


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("2.0.1+cpu.cxx11.abi", "2.0.1+cpu"),
        ("2.0.1+cu117.with.pypi.cudnn", "2.0.1+cu117"),
        ("2.5.1+cu124_full", "2.5.1+cu124"),
    ],
)
def test_a_tag_that_names_the_packing_too_is_the_same_build(typed: str, read: str) -> None:
    found = doctor(torch=typed, gpu="RTX 4090", os="linux", probe=False)
    assert found.data()["torch"]["version"] == read
    assert found.exit_code == doctor(torch=read, gpu="RTX 4090", os="linux", probe=False).exit_code


def test_wsl_is_named_once_where_it_is_described() -> None:
    text = doctor(torch="2.7.0+cu128", gpu="RTX 5090", os="wsl", driver="576.02", probe=False).text()
    assert text.lower().count("wsl") == 1


def test_a_driver_that_no_longer_drives_the_supposed_gpu_is_noted() -> None:
    late = doctor(torch="2.14.1+cu126", gpu="GTX 1080, RTX 4090", driver="595.71", os="linux", probe=False)
    assert [
        note for note in late.data()["not_checked"] if "no longer drives the GeForce GTX 1080: 580" in note
    ]
    fine = doctor(torch="2.14.1+cu126", gpu="GTX 1080", driver="580.95", os="linux", probe=False)
    assert not [note for note in fine.data()["not_checked"] if "no longer drives" in note]


def test_what_is_taken_for_granted_is_said_with_its_flag() -> None:
    said = doctor(torch="2.5.1+cu121", gpu="RTX 5060", os="windows", python="3.12", probe=False)
    assert "taken for granted: x86_64 (--machine)" in said.data()["not_checked"]
    said = doctor(
        torch="2.5.1+cu121", gpu="RTX 5060", os="windows", python="3.12", machine="x86_64", probe=False
    )
    assert not any("granted" in note for note in said.data()["not_checked"])


@pytest.mark.parametrize(("gpu", "driver", "os", "ended"), [
    ("GTX 1080", "595.58.03", "linux", True), ("GTX 1080", "590.44.01", "linux", True), ("GTX 1080", "582.28", "windows", False),
    ("GTX 1080", "580.95.05", "linux", False), ("K80", "495.29.05", "linux", True), ("K80", "475.14", "windows", False),
    ("sm_53", "595.58.03", "linux", False), ("RTX 2080", "610.43.02", "linux", False),
])  # fmt: skip
def test_a_gpus_last_branch_ends_where_the_next_begins(gpu: str, driver: str, os: str, ended: bool) -> None:
    found = doctor(gpu=gpu, driver=driver, os=os, torch="2.5.1+cu121", probe=False)
    assert any("no longer drives" in note for note in found.data()["not_checked"]) is ended
