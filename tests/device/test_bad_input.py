"""What people type, paste and leave behind: all that is wrong at once, and never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_explain import PRINTED

from ambidex import cli
from ambidex.device import environment, fingerprints, installed, rules
from ambidex.device.doctor import doctor
from ambidex.device.excerpt import excerpt
from ambidex.device.explain import explain
from ambidex.device.machine import Build, Driver, Gpu, Machine
from ambidex.errors import Problems

Install = Callable[..., Path]


def complaint(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["doctor", *arguments]) == 2
    return capsys.readouterr().err


def test_everything_that_is_wrong_is_said_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(
        ["--torch", "x", "--gpu", "y,z", "--driver", "1", "--python", "2.7", "--os", "beos", "--machine", "vax",
         "--device", "xpu", "--python-env", "/nowhere/at/all", "--nonsense", "--json", "--report"], capsys
    )  # fmt: skip
    assert said.startswith("11 errors:")
    for word in (
        "--nonsense",
        "--report",
        "'xpu'",
        "/nowhere",
        "'x'",
        "'y'",
        "'z'",
        "'1'",
        "2.7",
        "beos",
        "vax",
    ):
        assert word in said, word


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["--torch", "2.5.1-cu121"], "'2.5.1+cu121'"),
        (["--gpu", "120"], "sm_120"),
        (["--gpu", "GeFroce RTX 5060"], "GeForce RTX 5060"),
        (["--gpu", "Radeon RX 7900"], "Only NVIDIA"),
        (["--gpux", "RTX 5060"], "--gpu"),
        (["explian"], "explain"),
        (["--os", "widnows"], "windows"),
    ],
)
def test_a_slip_is_answered_with_what_was_meant(
    arguments: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert near in complaint(arguments, capsys)


def test_letters_of_another_alphabet_are_not_passed_over() -> None:
    with pytest.raises(Problems):
        doctor(gpu="ГТХ 5060", probe=False)


def test_an_environment_without_a_python_is_judged_by_its_own_version(install: Install) -> None:
    folder = install()
    (folder / "pyvenv.cfg").write_text("version = 3.9.7\n")
    fix = doctor(python_env=folder, gpu="RTX 5060", probe=False).diagnosis.fixes[0]
    assert fix.installs == ("torch==2.8.0+cu128",), "the newest for Python 3.9"
    assert f"{folder / 'bin/python'} -m pip uninstall -y torch" in fix.commands


def test_a_folder_of_packages_is_installed_into_by_its_path(install: Install) -> None:
    site = install() / "lib/python3.11/site-packages"
    (typed,) = doctor(python_env=site, gpu="RTX 5060", python="3.11", probe=False).diagnosis.fixes[0].commands
    assert f"--upgrade --target {site} --python-version 3.11" in typed


def test_a_torch_of_which_only_the_record_is_left_is_uninstalled_first(tmp_path: Path) -> None:
    site = tmp_path / "env/lib/python3.11/site-packages"
    (site / "torch-2.15.0+cu130.dist-info").mkdir(parents=True)
    found = doctor(python_env=tmp_path / "env", gpu="RTX 5060", probe=False)
    assert found.exit_code == 24
    assert "its package is not there" in found.diagnosis.cause.text
    assert "uninstall" in found.diagnosis.fixes[0].commands[0]


def test_a_file_named_torch_is_no_torch(tmp_path: Path) -> None:
    site = tmp_path / "lib/python3.11/site-packages"
    site.mkdir(parents=True)
    (site / "torch").write_text("")
    assert installed.read(environment.at(tmp_path)).missing


@pytest.mark.parametrize("target", ["bin/python", ""])
def test_a_link_to_a_python_that_is_gone_is_named(tmp_path: Path, target: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to("/gone/python3")
    with pytest.raises(Problems, match="/gone/python3"):
        environment.at(tmp_path / target)


def test_a_gpu_that_the_driver_keeps_from_working_is_not_the_one_to_show() -> None:
    gpus = (Gpu("RTX 5060", (12, 0)), Gpu("GTX 1080", (6, 1), 1))
    machine = Machine(build=Build("2.15.0+cu130", "13.0"), gpus=gpus, driver=Driver("576.02"))
    fix = rules.judge(machine).fixes[0]
    assert fix.installs == ("torch==2.11.0+cu128",)


def test_a_torch_without_wheels_for_that_python_is_noted() -> None:
    found = doctor(torch="2.5.1+cu121", gpu="A100", python="3.14", probe=False)
    assert any("no wheels for Python 3.14" in note for note in found.data()["not_checked"])


def test_a_driver_is_given_its_cuda_by_the_table() -> None:
    found = doctor(torch="2.5.1+cu121", gpu="A100", driver="576.02", probe=False).data()
    assert found["driver"] == {"version": "576.02", "cuda": "12.9"}


LOUD = {
    "stdout closed": (">&-", ["--no-probe"], 0),
    "stdout full": (">/dev/full", ["--no-probe"], 4),
    "stdin closed": ("<&-", ["explain"], 30),
    "stderr closed": ("2>&-", ["--gpu", "foo"], 2),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
@pytest.mark.parametrize("case", LOUD.values(), ids=LOUD.keys())
def test_a_stream_that_is_not_there_ends_in_no_traceback(case: tuple[str, list[str], int]) -> None:
    stream, words, code = case
    command = [sys.executable, "-m", "ambidex", "doctor", *words]
    usual = subprocess.run(command, capture_output=True, check=False)
    typed = " ".join([f"'{sys.executable}'", *command[1:], stream])
    ran = subprocess.run(
        ["/bin/sh", "-c", typed], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert "Traceback" not in ran.stderr
    # What it says with its streams there depends on the machine: 24 without torch, 22 with a CUDA build in a container.
    assert ran.returncode in (code, usual.returncode), ran.stderr


@pytest.mark.parametrize("text", PRINTED)
def test_a_known_error_is_found_anywhere_in_a_long_log(text: str) -> None:
    line = "2026-11-22 12:00:00 step 100 loss 3.2\n" * 10_000
    kept = excerpt(f"{line}{text}\n{line}".encode())
    assert len(kept) < 100_000
    assert [known.id for known, _ in fingerprints.matches(kept.decode())][:1] == [PRINTED[text]]


def test_a_long_text_that_holds_nothing_known_is_not_called_empty() -> None:
    assert "Nothing in this text" in explain(excerpt(b"a" * 1_000_000).decode()).text


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("RuntimeError: CUDA error: 没有可在设备上执行的内核映像", "no_kernel_image"),
        ("ImportError: x.so: 未定义符号：_ZN3c104cuda9SetDeviceEi", "symbol_torch"),
        ("ImportError: libcudart.so.11.0: 无法打开共享对象文件: 没有那个文件或目录", "library_missing"),
        ("ImportError: DLL load failed while importing _C: 找不到指定的模块。", "dll_missing"),
    ],
)
def test_the_same_error_is_known_in_another_language(text: str, cause: str) -> None:
    assert explain(text).cause == cause


def test_the_warnings_that_name_the_ends_of_the_list_are_judged_too() -> None:
    spark = (
        "Found GPU0 NVIDIA GB10 which is of cuda capability 12.1.\nMinimum and Maximum cuda capability supported "
        "by this version of PyTorch is (8.0) - (12.0)"
    )
    assert explain(spark).cause == "false_alarm"
    old = (
        "python3.10: Found GPU0 NVIDIA GeForce GTX 1080 Ti which is of cuda capability 6.1.\nPyTorch no longer "
        "supports this GPU because it is too old.\nThe minimum cuda capability supported by this library is 7.5."
    )
    assert "torch==2.14.1+cu126" in explain(old).fix[0]
    assert "Python 3.10" in explain(old).fix[0]


def test_a_flag_that_explain_would_pass_over_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(["explain", "x.txt", "--os", "windows", "--python-env", "."], capsys)
    assert "--python-env, --os would change nothing" in said


@pytest.mark.parametrize("coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_paste_is_read_in_the_coding_that_its_editor_wrote(
    coding: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "error.txt"
    file.write_bytes("CUDA error: no kernel image is available for execution\r\n".encode(coding))
    assert cli.main(["doctor", "explain", str(file), "--json"]) == 0
    assert '"no_kernel_image"' in capsys.readouterr().out
