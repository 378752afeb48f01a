"""The doctor's answer: one cause, the contract's exit code, the schema's keys, and no torch imported."""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from built_machines import RTX_3090, RTX_5060, a_build, archs, cpu_build, probed, some_facts

import ambidex
from ambidex.device import command, facts
from ambidex.device.doctor import diagnose, doctor
from ambidex.device.extensions import Scan
from ambidex.device.facts import Facts
from ambidex.device.gpus_seen import Seen
from ambidex.device.machine import Build, Container, Driver, Extension, Gpu
from ambidex.device.probe import DeviceProbe, Probe
from ambidex.device.report import Report, anonymous, for_people
from ambidex.errors import Problems

Install = Callable[..., Path]
CU128 = a_build("2.11.0+cu128", "12.8", "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120")


def works(gpu: Gpu, number: int = 0) -> DeviceProbe:
    return DeviceProbe(f"cuda:{number}", True, gpu.name, gpu.uuid, gpu.cc)


def dies(gpu: Gpu, number: int = 0, cause: str = "no_kernel_image") -> DeviceProbe:
    return DeviceProbe(f"cuda:{number}", False, gpu.name, gpu.uuid, gpu.cc, 0.0, "add", cause, "add failed")


def hidden(gpu: Gpu) -> Gpu:
    return Gpu(gpu.name, gpu.cc, gpu.index, gpu.uuid, visible=False)


LACKING = Scan((Extension("flash_attn", archs("sm_80 sm_90"), "/x.so"),), 1)
# id: facts, probe, scan, strict, device, cause, exit code.
CASES: dict[str, tuple[Facts, Probe | None, Scan | None, bool, str, str, int]] = {
    "all well": (some_facts(CU128, [RTX_5060]), None, None, False, "auto", "OK", 0),
    "all well and tried": (
        some_facts(CU128, [RTX_5060]),
        probed(works(RTX_5060)),
        None,
        True,
        "cuda",
        "OK",
        0,
    ),
    "no code": (some_facts(a_build(), [RTX_5060]), None, None, False, "auto", "ARCH_NONE", 20),
    "no gpu": (some_facts(cpu_build()), None, None, False, "auto", "NO_GPU", 0),
    "no gpu, strictly": (some_facts(cpu_build()), None, None, True, "auto", "NO_GPU", 10),
    "a gpu by name, none there": (some_facts(cpu_build()), None, None, False, "cuda", "NO_GPU", 10),
    "cpu build": (some_facts(cpu_build(), [RTX_5060]), None, None, True, "auto", "CPU_BUILD", 10),
    "cpu asked for": (some_facts(a_build(), [RTX_5060]), None, None, True, "cpu", "OK", 0),
    "cpu asked of a broken torch": (
        some_facts(a_build(broken="cut short")),
        None,
        None,
        False,
        "cpu",
        "TORCH_BROKEN",
        24,
    ),
    "missing": (some_facts(a_build(missing="none here")), None, None, False, "auto", "TORCH_MISSING", 24),
    "hidden": (some_facts(CU128, [hidden(RTX_5060)]), None, None, False, "auto", "HIDDEN_BY_ENV", 23),
    "driver": (some_facts(CU128, [RTX_5060], Driver("551.23")), None, None, False, "auto", "DRIVER_OLD", 21),
    "container": (
        some_facts(CU128, container=Container("docker", False, "started without a GPU")),
        *(None, None, False, "auto", "CONTAINER_NO_GPU", 22),
    ),
    "extension": (some_facts(CU128, [RTX_5060]), None, LACKING, False, "auto", "EXTENSION_ARCH", 25),
    "extension of no account": (some_facts(CU128, [RTX_3090]), None, LACKING, False, "auto", "OK", 0),
    "the probe says no": (
        some_facts(CU128, [RTX_5060]),
        probed(dies(RTX_5060)),
        None,
        False,
        "auto",
        "ARCH_NONE",
        20,
    ),
    "the probe fails otherwise": (
        some_facts(CU128, [RTX_5060]),
        *(probed(dies(RTX_5060, 0, "timeout")), None, False, "auto", "PROBE_FAILED", 30),
    ),
    "CUDA does not start": (
        some_facts(CU128, [RTX_5060]),
        *(probed(cause="forward_compat", text="Error 804"), None, False, "auto", "PROBE_FAILED", 30),
    ),
    "torch does not import": (
        some_facts(CU128, [RTX_5060]),
        *(probed(cause="import_failed", text="import torch failed"), None, False, "auto", "TORCH_BROKEN", 24),
    ),
    "the probe outranks theory": (
        some_facts(a_build(), [RTX_5060]),
        probed(works(RTX_5060)),
        None,
        False,
        "auto",
        "OK",
        0,
    ),
    "only the probe sees the gpu": (
        some_facts(CU128, nvidia=True),
        probed(works(RTX_5060)),
        None,
        False,
        "auto",
        "OK",
        0,
    ),
    "the usable one of two": (
        some_facts(a_build(), [RTX_5060, RTX_3090]),
        None,
        None,
        False,
        "cuda",
        "OK",
        0,
    ),
    "that very one of two": (
        some_facts(a_build(), [RTX_5060, RTX_3090]),
        None,
        None,
        False,
        "cuda:1",
        "OK",
        0,
    ),
    "the other one of two": (
        some_facts(a_build(), [RTX_5060, RTX_3090]),
        None,
        None,
        False,
        "cuda:0",
        "ARCH_NONE",
        20,
    ),
    "a number that none has": (some_facts(CU128, [RTX_5060]), None, None, False, "cuda:3", "NO_GPU", 10),
    "a number that is hidden": (
        some_facts(CU128, [RTX_5060, hidden(RTX_3090)]),
        *(None, None, False, "cuda:1", "HIDDEN_BY_ENV", 23),
    ),
    "mps elsewhere": (some_facts(cpu_build()), None, None, False, "mps", "NO_GPU", 10),
    "mps": (
        some_facts(cpu_build(), os="macos", machine="aarch64"),
        *(probed(DeviceProbe("mps", True, "Apple GPU")), None, False, "mps", "OK", 0),
    ),
    "a rocm build that ran": (
        some_facts(a_build("2.9.0+rocm6.4", None, hip="6.4"), amd=True),
        *(probed(DeviceProbe("cuda:0", True, "Radeon RX 7900", cc=(11, 0))), None, False, "auto", "OK", 0),
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_each_machine_ends_in_its_cause_and_exit_code(case: tuple[Any, ...]) -> None:
    found, probe, scan, strict, device, cause, code = case
    diagnosis = diagnose(found, scan=scan, probe=probe, device=device, strict=strict)
    assert (diagnosis.cause.id, diagnosis.exit_code) == (cause, code)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_report_has_the_schemas_keys_and_a_text(case: tuple[Any, ...]) -> None:
    found, probe, scan, strict, device, _, code = case
    report = Report(
        found, diagnose(found, scan=scan, probe=probe, device=device, strict=strict), probe, scan, device
    )
    data = json.loads(report.json())
    assert list(data) == [
        *(
            "schema",
            "table_date",
            "verdict",
            "exit_code",
            "cause",
            "torch",
            "driver",
            "gpus",
            "container",
            "env",
        ),
        *("cpu", "extensions", "probe", "fixes", "also", "not_checked"),
    ]
    assert data["schema"] == 1
    assert data["exit_code"] == code
    assert data["verdict"] in ("native", "same-major", "jit", "none", "unknown")
    assert list(data["cause"]) == ["id", "text"]
    assert list(data["torch"]) == ["version", "cuda", "path", "python", "archs"]
    assert list(data["cpu"]) == ["quota", "affinity", "threads", "isa"]
    assert all(list(gpu) == ["name", "cc", "visible", "verdict", "covered_by"] for gpu in data["gpus"])
    assert all(list(fix) == ["commands", "installs", "requires", "why"] for fix in data["fixes"])
    assert report.diagnosis.cause.text[:30] in " ".join(report.text().split())
    assert "Not checked" in report.text() or not report.diagnosis.not_checked


def test_a_command_is_never_broken_over_two_lines() -> None:
    report = doctor(torch="2.5.1+cu121", gpu="RTX 5060", driver="576.02")
    typed = " && ".join(report.diagnosis.fixes[0].commands)
    assert any(typed in line for line in report.text(width=60).splitlines())
    prose = [line for line in report.text(width=60).splitlines() if " -m pip " not in line]
    assert max(map(len, prose)) <= 64


def test_what_if_needs_nothing_of_this_machine() -> None:
    """The project's own case: RTX 5060, driver 576.02, torch 2.5.1+cu121."""
    report = doctor(
        torch="2.5.1+cu121", gpu="RTX 5060", driver="576.02", python="3.11", os="linux", machine="x86_64"
    )
    assert report.exit_code == 20
    assert report.diagnosis.fixes[0].commands[-1] == (
        'python -m pip install "torch==2.11.0+cu128" --index-url https://download.pytorch.org/whl/cu128'
    )
    assert report.probe is None


@pytest.mark.parametrize(
    "wrong", [{"torch": "banana"}, {"gpu": "RTX 9999"}, {"driver": "new"}, {"device": "gpu"}]
)
def test_nonsense_exits_2(wrong: dict[str, str]) -> None:
    with pytest.raises(Problems) as refused:
        doctor(**wrong)  # type: ignore[arg-type]
    assert refused.value.exit_code == 2


def test_another_environment_is_judged_with_a_supposed_gpu(install: Install, tmp_path: Path) -> None:
    report = doctor(python_env=install(), gpu="RTX 5060")
    assert report.exit_code == 20
    assert report.machine.build.version == "2.5.1+cu121"


def test_a_broken_environment_is_a_sentence(install: Install) -> None:
    report = doctor(python_env=install(version=None), probe=False)
    assert report.exit_code == 24
    assert "version.py" in str(report)


def seen_by(**seen: Any) -> Callable[..., Facts]:
    def look(python_env: object = None, **more: object) -> Facts:
        return some_facts(CU128, **seen)

    return look


def test_a_probe_is_started_only_where_a_gpu_may_be() -> None:
    def never(*_: object) -> Probe:
        raise AssertionError("no child was worth starting")

    doctor(see=seen_by(), run_probe=never)
    doctor(see=seen_by(gpus=[hidden(RTX_5060)]), run_probe=never)
    doctor(see=seen_by(gpus=[RTX_5060]), run_probe=never, probe=False)
    doctor(see=seen_by(gpus=[RTX_5060]), run_probe=never, device="cpu")
    with pytest.raises(AssertionError):
        doctor(see=seen_by(gpus=[RTX_5060]), run_probe=never)


def test_a_driver_that_hangs_leaves_the_answer_open_and_is_not_probed() -> None:
    note = "nvidia-smi did not answer within 4 s"
    found = some_facts(CU128)
    hung = Facts(
        found.machine, found.environment, Seen(nvidia=True, hangs=True, notes=(note,)), notes=(note,)
    )
    assert not facts.may_have_gpu(hung)
    diagnosis = diagnose(hung)
    assert diagnosis.exit_code == 30
    assert note in diagnosis.cause.text


@pytest.mark.parametrize(("build", "usable"), [(CU128, True), (a_build(), False), (cpu_build(), False)])
def test_gpu_usable_is_true_only_where_the_doctor_says_so(
    monkeypatch: pytest.MonkeyPatch, build: Build, usable: bool
) -> None:
    found = some_facts(build, [RTX_5060])
    monkeypatch.setattr(
        "ambidex.device.doctor.doctor",
        lambda *, device, strict, **_: Report(found, diagnose(found, device=device, strict=strict)),
    )
    assert ambidex.gpu_usable() is usable
    assert ambidex.gpu_usable("cuda:0") is usable


def test_the_paste_block_names_no_person_no_place_and_no_gpu_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "grace")
    monkeypatch.setenv("HOME", "/home/grace")
    build = a_build(broken="/home/grace/My Envs/ml/lib/torch/version.py is missing")
    report = doctor(
        see=lambda *_, **__: some_facts(build, [RTX_5060], env={"CUDA_VISIBLE_DEVICES": RTX_5060.uuid}),
        probe=False,
    )
    block = report.paste()
    assert block.startswith("```")
    for private in ("grace", "/home", "aaaa1111", "/site-packages"):
        assert private not in block


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see https://download.pytorch.org/whl/cu128 for it", "https://download.pytorch.org/whl/cu128"),
        ("no /dev/nvidiactl and no /dev/dxg", "/dev/nvidiactl"),
        ("read/write and CUDA 12.x/13.x", "read/write"),
    ],
)
def test_what_is_no_path_of_a_person_stays(text: str, kept: str) -> None:
    assert kept in anonymous(text)


@pytest.mark.parametrize(
    "text",
    [
        "/home/ada/venv/bin/python -m pip",
        "C:\\Users\\ada\\venv\\python.exe -m pip",
        "~/ada/x",
        "\\\\server\\ada\\x",
        "/Users/ada/x.py",
        "GPU-ada00000-1111-2222",
    ],
)
def test_paths_and_ids_of_every_system_are_taken_out(text: str) -> None:
    assert "ada" not in anonymous(text)


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(list(words))


def test_the_flags_reach_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        command.run(parsed("--torch", "2.5.1+cu121", "--gpu", "5060", "--driver", "576.02", "--json")) == 20
    )
    assert json.loads(capsys.readouterr().out)["cause"]["id"] == "ARCH_NONE"
    assert command.run(parsed("--torch", "2.5.1+cu121", "--gpu", "5060", "--report")) == 20
    assert capsys.readouterr().out.startswith("```")
    assert command.run(parsed("--torch", "2.11.0+cu128", "--gpu", "5060")) == 0
    assert "\033[" not in capsys.readouterr().out


def test_a_reader_that_has_read_enough_is_left_in_peace() -> None:
    gone, ours = os.pipe()
    os.close(gone)
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=ours, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(ours)
    assert ran.returncode == 0
    assert "Error" not in ran.stderr


def test_colour_is_for_terminals_without_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    report = doctor(torch="2.5.1+cu121", gpu="RTX 5060")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\033[" in for_people(report, Terminal())
    assert "\033[" not in for_people(report, io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\033[" not in for_people(report, Terminal())


def test_explain_reads_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "error.txt").write_bytes(b"\xff\xfeCUDA out of memory\n")
    assert command.run(parsed("explain", str(tmp_path / "error.txt"))) == 0
    assert "memory is full" in capsys.readouterr().out
    for wrong in (tmp_path / "nothing.txt", tmp_path):
        with pytest.raises(Problems) as refused:
            command.run(parsed("explain", str(wrong)))
        assert refused.value.exit_code == 2


def test_variants_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_variants_arguments(parser)
    assert command.run_variants(parser.parse_args(["--json"])) == 0
    assert {row["name"] for row in json.loads(capsys.readouterr().out)} >= {"cpu", "cu130", "nightly-cu124"}


PROGRAM = """
import sys
from ambidex.device import command
import argparse
parser = argparse.ArgumentParser(); command.add_arguments(parser)
code = command.run(parser.parse_args(["--no-probe"]))
slow = {"torch", "numpy", "pydantic", "packaging", "difflib", "platform", "importlib.resources"}
print(code, sorted(slow & sys.modules.keys()), file=sys.stderr)
"""


def test_the_answer_from_theory_is_fast_and_imports_no_torch() -> None:
    """Processor time, which a busy machine does not stretch; on an idle one it is what a user waits."""
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert ran.stderr.strip().endswith("[]"), ran.stderr
    assert statistics.median(times) < 0.5, times


def test_on_windows_no_two_commands_stand_in_one_line() -> None:
    """Windows PowerShell 5.1 refuses `&&`; in a POSIX shell it stops after what failed."""
    asked = {"torch": "2.5.1+cu121", "gpu": "RTX 5060", "driver": "576.02", "python": "3.11"}
    text = doctor(**asked, os="windows").text()  # type: ignore[arg-type]
    assert "&&" not in text
    lines = [line.strip() for line in text.splitlines()]
    at = next(number for number, line in enumerate(lines) if "pip uninstall -y torch" in line)
    assert lines[at + 1].startswith('python -m pip install "torch==')
    assert " && " in doctor(**asked, os="linux").text()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("torch", "made_for"),
    [("2.9.1+rocm6.4", "a ROCm build"), ("2.9.1+xpu", "an XPU build"), ("2.13.0+cpu", "a CPU build")],
)
def test_the_line_of_torch_names_what_the_build_is_made_for_as_the_cause_does(
    torch: str, made_for: str
) -> None:
    text = doctor(torch=torch, gpu="T4").text()
    assert next(line for line in text.splitlines() if line.startswith("Torch  ")).count(made_for) == 1
    assert ("a CPU build" in text) == (made_for == "a CPU build")


def test_a_build_for_other_gpus_is_named_so_where_it_was_read_too() -> None:
    build = replace(cpu_build(), version="2.9.1+xpu")
    report = doctor(see=lambda *_, **__: some_facts(build, [RTX_5060]), probe=False)
    assert "an XPU build" in next(line for line in report.text().splitlines() if line.startswith("Torch  "))


@pytest.mark.parametrize("value", [0, 2.5, True, ["RTX 5060"], b"cuda", {}])
@pytest.mark.parametrize(
    "name", ["device", "torch", "gpu", "driver", "python", "os", "machine", "python_env"]
)
def test_an_argument_that_is_no_text_is_named_and_raises_problems(name: str, value: Any) -> None:
    with pytest.raises(Problems, match=name) as raised:
        doctor(**{name: value})
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("device", [None, 0, 1.5, ["cuda"]])
def test_a_device_that_is_no_text_raises_problems_wherever_it_is_asked_for(device: Any) -> None:
    with pytest.raises(Problems, match="device"):
        ambidex.gpu_usable(device)


def test_every_argument_that_is_no_text_is_named_at_once() -> None:
    with pytest.raises(Problems) as raised:
        doctor(torch=2.5, gpu=["RTX 5060"], python_env=Path("x"))  # type: ignore[arg-type]
    assert len(raised.value.problems) == 2


def test_nothing_that_a_file_or_a_child_says_commands_the_terminal() -> None:
    said = "\x1b]0;x\x07\x1b[31m"
    broken = Build(f"2.11.0{said}", "12.8", archs=CU128.archs, path=f"/x{said}", broken=f"no {said}")
    for build in (CU128, broken):
        found = some_facts(build, [RTX_5060])
        probe = probed(DeviceProbe("cuda:0", False, said, "", (12, 0), 0.0, "add", "failed", f"add: {said}"))
        report = Report(found, diagnose(found, probe=probe), probe=probe)
        assert report.text().replace("\n", "").isprintable()
