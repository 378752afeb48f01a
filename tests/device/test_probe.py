"""The probe maps whatever a child process does to a cause, and never waits longer than it was told."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ambidex.device import kernels, probe

Child = Callable[[str], Path]
NO_IMAGE = "CUDA error: no kernel image is available for execution on the device\\nCompile with ..."
HEAD = "say('torch', version='2.6.0+cu124', cuda='12.4', hip=None)\n"


@pytest.fixture
def child(tmp_path: Path) -> Child:
    """A child process that speaks the protocol and does what the given lines do. ``skip`` is its argument."""

    def write(lines: str) -> Path:
        path = tmp_path / "child.py"
        path.write_text(
            "import json, os, sys, time\nskip = int(sys.argv[1])\n"
            "def say(event, **what):\n"
            "    print('ambidex-probe ' + json.dumps({**what, 'event': event}), flush=True)\n"
            "def gpu(n): say('device', device=f'cuda:{n}', name=f'GPU {n}', cc=[8, n], uuid=f'GPU-{n}')\n"
            "def works(n): gpu(n); say('op', device=f'cuda:{n}', op='add'); say('ok', device=f'cuda:{n}', "
            "seconds=0.1)\n"
            "def fails(n, text, kind='RuntimeError'):\n"
            "    gpu(n); say('op', op='add')\n"
            "    say('failed', device=f'cuda:{n}', op='add', kind=kind, message=text)\n" + lines
        )
        return path

    return write


def test_a_gpu_whose_kernels_ran_is_ok(child: Child) -> None:
    found = probe.run(child=child(HEAD + "say('count', count=1); works(0)"))
    assert found.ok
    assert found.torch == "2.6.0+cu124"
    assert found.devices[0].cc == (8, 0)


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        (NO_IMAGE, "no_kernel_image"),
        ("CUDA out of memory. Tried to allocate 20.00 MiB", "out_of_memory"),
        ("CUDA error: the provided PTX was compiled with an unsupported toolchain.", "ptx_toolchain"),
        ("CUDA error: invalid device function", "invalid_device_function"),
        ("something that nobody has seen", "failed"),
    ],
)
def test_what_a_kernel_says_becomes_a_cause(child: Child, message: str, cause: str) -> None:
    found = probe.run(child=child(HEAD + f"say('count', count=1); fails(0, '''{message}''')"))
    assert not found.ok
    assert found.devices[0].cause == cause
    assert found.devices[0].text.startswith("add failed")
    assert "\n" not in found.devices[0].text


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("The NVIDIA driver on your system is too old (found version 12080).", "driver_old"),
        (
            "Unexpected error from cudaGetDeviceCount(). Error 804: forward compatibility was attempted",
            "forward_compat",
        ),
        ("Error 803: system has unsupported display driver / cuda driver combination", "driver_mismatch"),
        ("CUDA unknown error - this may be due to an incorrectly set up environment", "unknown_999"),
        ("Torch not compiled with CUDA enabled", "not_compiled"),
        ("Found no NVIDIA driver on your system.", "no_driver"),
        ("No CUDA GPUs are available", "no_device"),
    ],
)
def test_why_cuda_could_not_start_becomes_a_cause(child: Child, message: str, cause: str) -> None:
    found = probe.run(child=child(HEAD + f"say('init_failed', kind='RuntimeError', message='''{message}''')"))
    assert (found.devices, found.cause) == ((), cause)


def test_a_torch_that_cannot_be_imported_is_said(child: Child) -> None:
    lines = "say('import_failed', kind='OSError', message='libcudart.so.12: cannot open shared object file')"
    found = probe.run(child=child(lines))
    assert found.cause == "import_failed"
    assert "libcudart" in found.text


def test_a_wrong_result_is_not_taken_for_a_working_gpu(child: Child) -> None:
    found = probe.run(
        child=child(HEAD + "say('count', count=1); fails(0, 'the kernel gave a wrong sum', 'WrongResult')")
    )
    assert found.devices[0].cause == "wrong_result"


def test_every_gpu_of_a_mixed_box_is_told_apart(child: Child) -> None:
    found = probe.run(child=child(HEAD + f"say('count', count=2); fails(0, '{NO_IMAGE}'); works(1)"))
    assert [device.ok for device in found.devices] == [False, True]


def test_a_crash_on_one_gpu_leaves_the_next_one_to_a_fresh_child(child: Child) -> None:
    lines = (
        "say('count', count=3)\nfor n in range(skip, 3):\n"
        "    if n == 1: gpu(1); say('op', op='matmul'); os.abort()\n    works(n)"
    )
    found = probe.run(child=child(HEAD + lines))
    assert [device.ok for device in found.devices] == [True, False, True]
    assert found.devices[1].cause == "crashed"
    assert "matmul" in found.devices[1].text


def test_a_hanging_kernel_ends_at_the_limit(child: Child) -> None:
    began = time.monotonic()
    found = probe.run(
        child=child(HEAD + "say('count', count=2); gpu(0); say('op', op='add'); time.sleep(60)"), seconds=4
    )
    assert time.monotonic() - began < 50, "of the 60 that it would sleep"
    assert found.devices[0].cause == "timeout"


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        ("time.sleep(60)", "timeout"),
        (HEAD + "time.sleep(60)", "timeout"),
        ("os.abort()", "crashed"),
        ("print('rubbish', flush=True)", "crashed"),
        ("sys.stdout.write('ambidex-probe {\\n'); sys.stdout.write('ambidex-probe [1]\\n')", "crashed"),
        ("raise SystemExit('libc10.so: undefined symbol: iJIT_NotifyEvent')", "symbol_mkl"),
    ],
)
def test_a_child_that_says_nothing_is_a_cause_too(child: Child, lines: str, cause: str) -> None:
    found = probe.run(child=child(lines), seconds=0.8 if cause == "timeout" else 60)
    assert (found.devices, found.cause) == ((), cause)
    assert found.text


def test_a_child_that_dies_at_once_again_and_again_ends_all_the_same(child: Child) -> None:
    found = probe.run(child=child(HEAD + "say('count', count=4); os.abort()"), seconds=60)
    assert found.seconds < 60


def test_a_python_that_cannot_be_started_is_said() -> None:
    found = probe.run("/nowhere/python")
    assert not found.ran
    assert found.cause == "not_started"


def test_the_child_is_not_led_astray_by_the_files_beside_it(tmp_path: Path) -> None:
    """`python device/kernels.py` would put device/ first on the path; `torch` must be found elsewhere all the
    same.
    """
    (tmp_path / "torch.py").write_text("__version__ = '0'\nraise ImportError('a torch that is a stub')\n")
    ran = subprocess.run(
        [sys.executable, kernels.__file__, "0"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path)},
        check=True,
    )
    assert "a torch that is a stub" in ran.stdout


def test_the_operations_themselves_are_right_on_a_device_that_works() -> None:
    torch = pytest.importorskip("torch")
    assert [name for name, _ in kernels.operations(torch, "cpu")] == [
        "add",
        "matmul",
        "attention forward and backward",
        "optimizer step",
    ]
    for name, run in kernels.operations(torch, "cpu"):
        assert run() is None, name


def test_a_result_that_is_off_by_more_than_tf32_is_wrong() -> None:
    torch = pytest.importorskip("torch")
    right = torch.ones(4)
    assert kernels.near(torch, right * 1.001, right)
    assert not kernels.near(torch, right * 1.1, right)
    assert not kernels.near(torch, right * float("nan"), right)


@pytest.mark.gpu
def test_every_gpu_here_runs_its_kernels() -> None:
    found = probe.run()
    assert found.devices, found
    assert found.ok, found
