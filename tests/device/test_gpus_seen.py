"""GPUs and driver are found by whoever answers, and nothing that a driver does ends in a traceback or a long
wait.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambidex.device import gpus_seen, nvml
from ambidex.device.ask import Answer, ask
from ambidex.device.gpus_seen import Told
from ambidex.device.machine import Driver, Gpu

FIELDS = gpus_seen._FIELDS.split(",")
ROW = "0, GPU-11111111-2222-3333-4444-555555555555, NVIDIA GeForce RTX 5060, 12.0, 576.02, 8188 MiB"


@pytest.fixture
def smi(tmp_path: Path) -> Callable[[str], str]:
    """Writes a program that answers as the given shell script does."""

    def write(script: str) -> str:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return str(program)

    return write


def look(tmp_path: Path, program: str | None, seconds: float = 3.0) -> gpus_seen.Seen:
    return gpus_seen.look(tmp_path, {"PATH": ""}, smi=program, nvml_told=Told, seconds=seconds)


def test_nvidia_smi_tells_gpu_driver_and_cuda(tmp_path: Path, smi: Callable[[str], str]) -> None:
    program = smi(
        f'case "$*" in *query*) echo "{ROW}";; *) echo "| Driver Version: 576.02 CUDA Version: 12.9 |";; esac'
    )
    seen = look(tmp_path, program)
    assert seen.gpus == (
        Gpu("NVIDIA GeForce RTX 5060", (12, 0), 0, "GPU-11111111-2222-3333-4444-555555555555", 8188 << 20),
    )
    assert seen.driver == Driver("576.02", (12, 9))
    assert seen.nvidia


def test_an_old_driver_that_rejects_compute_cap_is_asked_again(
    tmp_path: Path, smi: Callable[[str], str]
) -> None:
    program = smi(
        'case "$*" in *compute_cap*) echo "Field \\"compute_cap\\" is not a valid field to query."; exit 2;; '
        '*query*) echo "0, GPU-1111111111, Tesla V100-SXM2-16GB, 450.80.02, 16160 MiB";; esac'
    )
    seen = look(tmp_path, program)
    assert seen.gpus[0].cc == (7, 0)
    assert seen.driver.version == "450.80.02"


def test_a_hanging_nvidia_smi_ends_in_a_sentence_in_time(tmp_path: Path, smi: Callable[[str], str]) -> None:
    began = time.monotonic()
    seen = look(tmp_path, smi("trap '' TERM; sleep 30 & sleep 30"), seconds=0.4)
    assert time.monotonic() - began < 25  # of the 30 that it would sleep
    assert seen.hangs
    assert any("did not answer within" in note for note in seen.notes)


@pytest.mark.parametrize(
    "script",
    [
        "head -c 100000 /dev/urandom",
        "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9",
        "echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18",
        "echo '[N/A], [N/A], [N/A], [N/A], [N/A], [N/A]'",
        "echo 'No devices were found'",
        "exit 0",
        "kill -SEGV $$",
        "yes | head -c 5000000",
    ],
)
def test_an_nvidia_smi_that_fails_or_prints_rubbish_ends_in_a_sentence(
    tmp_path: Path, smi: Callable[[str], str], script: str
) -> None:
    seen = look(tmp_path, smi(script))
    assert seen.gpus == ()
    assert seen.notes
    assert all(note.isascii() and note.isprintable() for note in seen.notes)


def test_a_program_that_cannot_be_started_is_a_sentence(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_bytes(b"\x7fELF rubbish")
    program.chmod(0o755)
    assert look(tmp_path, str(program)).notes


def test_good_rows_are_kept_among_bad_ones() -> None:
    other = ROW.replace("0, GPU", "9, GPU")
    text = f"WARNING: infoROM is corrupted at gpu 0000:01:00.0\n{ROW}\n\n1, x\n{other}\n"
    found, version = gpus_seen.parse_csv(text, FIELDS)
    assert [gpu.index for gpu in found] == [0, 9]
    assert version == "576.02"


@settings(deadline=None)
@given(
    st.one_of(
        st.text(), st.text(alphabet='0123456789,. "\n\rGPU-[N/A]MiB'), st.text().map(lambda tail: ROW + tail)
    )
)
def test_no_text_breaks_the_row_parser(text: str) -> None:
    found, _ = gpus_seen.parse_csv(text, FIELDS)
    assert all(gpu.name and gpu.name.isprintable() for gpu in found)
    gpus_seen.cuda_of_header(text)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 18:56:32 UTC 2023\n",
            "535.129.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release Build\nGCC 12.3.0",
            "570.124.06",
        ),
        ("rubbish 1.2.3", None),
        ("", None),
    ],
)
def test_the_kernel_tells_the_driver_where_nothing_else_does(
    tmp_path: Path, text: str, version: str | None
) -> None:
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    (tmp_path / "proc/driver/nvidia/version").write_text(text)
    assert gpus_seen.driver_by_kernel(tmp_path) == version


def test_the_module_tells_the_driver_too(tmp_path: Path) -> None:
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("580.88\n")
    assert gpus_seen.driver_by_kernel(tmp_path) == "580.88"


def test_a_card_on_the_bus_without_a_driver_is_mentioned(tmp_path: Path) -> None:
    device = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030000\n")
    (device / "device").write_text("0x2d04\n")
    seen = look(tmp_path, None)
    assert "0x2d04" in seen.notes[0]
    assert "no NVIDIA driver is loaded" in seen.notes[0]
    assert seen.undriven


def test_a_jetson_is_known_by_its_board(tmp_path: Path) -> None:
    (tmp_path / "proc/device-tree").mkdir(parents=True)
    (tmp_path / "proc/device-tree/model").write_bytes(b"NVIDIA Jetson AGX Orin Developer Kit\0")
    assert look(tmp_path, None).gpus[0].cc == (8, 7)


def test_a_machine_without_anything_has_no_sign_of_a_gpu(tmp_path: Path) -> None:
    assert look(tmp_path, None) == gpus_seen.Seen()


class Library:
    """An NVML in Python. ``fails`` names functions and the code that they return."""

    def __init__(self, gpus: int = 1, fails: dict[str, int] | None = None, lacks: str = "") -> None:
        self.gpus, self.fails, self.lacks = gpus, fails or {}, lacks

    def __getattr__(self, name: str) -> Any:
        if name == self.lacks or name.startswith("_"):
            raise AttributeError(name)
        code = self.fails.get(name, 0)
        return (lambda *_: code) if code else getattr(self, f"_{name}", lambda *_: 0)

    def _nvmlSystemGetDriverVersion(self, buffer: Any, _: Any) -> int:
        buffer.value = b"580.88"
        return 0

    def _nvmlSystemGetCudaDriverVersion_v2(self, number: Any) -> int:
        number._obj.value = 13000
        return 0

    def _nvmlDeviceGetCount_v2(self, number: Any) -> int:
        number._obj.value = self.gpus
        return 0

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def _nvmlDeviceGetName(self, _handle: Any, buffer: Any, _: Any) -> int:
        buffer.value = b"NVIDIA GeForce RTX 5060"
        return 0

    def _nvmlDeviceGetUUID(self, handle: Any, buffer: Any, _: Any) -> int:
        buffer.value = f"GPU-{handle.value:08d}".encode()
        return 0

    def _nvmlDeviceGetCudaComputeCapability(self, _handle: Any, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = 12, 0
        return 0

    def _nvmlDeviceGetMemoryInfo(self, _handle: Any, memory: Any) -> int:
        memory._obj.total = 8 << 30
        return 0


def test_nvml_tells_everything() -> None:
    said = nvml.read(Library(gpus=2))
    assert [row["uuid"] for row in said["gpus"]] == ["GPU-00000001", "GPU-00000002"]
    assert (said["driver"], said["cuda"], said["notes"]) == ("580.88", (13, 0), [])
    told = gpus_seen._told_by_nvml(said)
    assert told.gpus[0] == Gpu("NVIDIA GeForce RTX 5060", (12, 0), 0, "GPU-00000001", 8 << 30)
    assert told.driver == Driver("580.88", (13, 0))


FUNCTIONS = [name.removeprefix("_") for name in vars(Library) if name.startswith("_nvml")]


@pytest.mark.parametrize("function", ["nvmlInit_v2", *FUNCTIONS])
@pytest.mark.parametrize("code", [15, 999, 4242])
def test_nvml_failing_at_any_call_keeps_the_rest_and_says_so(function: str, code: int) -> None:
    said = nvml.read(Library(fails={function: code}))
    if function != "nvmlDeviceGetMemoryInfo":  # an integrated GPU has no memory of its own
        assert said["notes"]
    if function.startswith("nvmlSystem"):
        assert said["gpus"]
    if function.startswith("nvmlDevice"):
        assert said["driver"] == "580.88"


@pytest.mark.parametrize("function", ["nvmlInit_v2", *FUNCTIONS])
def test_an_nvml_that_lacks_a_function_is_a_sentence(function: str) -> None:
    said = nvml.read(Library(lacks=function))
    assert said["notes"] or function == "nvmlDeviceGetMemoryInfo"


def test_a_library_of_another_kind_is_no_nvml() -> None:
    """libc has none of the functions: the first call says so."""
    assert nvml.read(ctypes.CDLL(None))["notes"]


def told_by(program: str, seconds: float = 3.0) -> Told:
    """NVML's child process, replaced by a Python that runs ``program``."""

    def put(_: Sequence[str], **limits: Any) -> Answer:
        return ask([sys.executable, "-c", program], **limits)

    return gpus_seen.by_nvml(load=lambda _: object(), put=put, seconds=seconds)


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.abort()",
        "print('rubbish')",
        "print('[]')",
        "print('{}')",
        "print('{\"gpus\": [1]}')",
        "1/0",
        "",
    ],
)
def test_an_nvml_that_takes_its_process_with_it_ends_in_a_sentence(program: str) -> None:
    told = told_by(program)
    assert told.gpus == ()
    assert "NVML" in told.notes[0]


def test_a_hanging_nvml_is_left_alone_and_nvidia_smi_not_asked(tmp_path: Path) -> None:
    began = time.monotonic()
    told = told_by("import time; time.sleep(30)", seconds=0.3)
    assert time.monotonic() - began < 25  # of the 30 that it would sleep
    assert told.hangs
    seen = gpus_seen.look(tmp_path, {"PATH": ""}, smi="/nowhere/nvidia-smi", nvml_told=lambda: told)
    assert seen.hangs
    assert len(seen.notes) == 1


def test_no_nvml_is_no_news() -> None:
    def load(_: str) -> Any:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    assert gpus_seen.by_nvml(load=load) == Told()


def test_a_real_library_that_breaks_off_halfway_is_read_as_far_as_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for NVML in C: two GPUs, of which the second has fallen off the bus."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    (tmp_path / "nvml.c").write_text(STAND_IN)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(tmp_path / "nvml.c")], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    told = gpus_seen.by_nvml(load=lambda _: object())
    assert [gpu.name for gpu in told.gpus] == ["NVIDIA GeForce RTX 5060"]
    assert told.driver == Driver("580.88", (13, 0))
    assert "fallen off the bus" in told.notes[0]


STAND_IN = """
#include <string.h>
typedef void *dev;
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlSystemGetDriverVersion(char *out, unsigned n) { strncpy(out, "580.88", n); return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { *out = 13000; return 0; }
int nvmlDeviceGetCount_v2(unsigned *out) { *out = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, dev *out) { *out = (dev)(long)(i + 1); return i ? 15 : 0; }
int nvmlDeviceGetName(dev d, char *out, unsigned n) { strncpy(out, "NVIDIA GeForce RTX 5060", n); return 0; }
int nvmlDeviceGetUUID(dev d, char *out, unsigned n) { strncpy(out, "GPU-1", n); return 0; }
int nvmlDeviceGetCudaComputeCapability(dev d, int *a, int *b) { *a = 12; *b = 0; return 0; }
int nvmlDeviceGetMemoryInfo(dev d, unsigned long long *out) { out[0] = 8ULL << 30; return 0; }
"""


@given(st.text(min_size=1))
def test_nothing_that_nvml_or_nvidia_smi_says_commands_the_terminal(said: str) -> None:
    rubbish = f"\x1b[31m{said}"
    row = {"name": rubbish, "cc": [12, 0], "index": 0, "uuid": rubbish, "memory_bytes": None}
    answer = {"gpus": [row], "driver": rubbish, "cuda": None, "notes": [rubbish]}
    told = gpus_seen.by_nvml(load=lambda _: object(), put=lambda *_, **__: Answer(json.dumps(answer), code=0))
    (gpu,) = told.gpus
    assert all(one.isprintable() for one in (gpu.name, gpu.uuid, told.driver.version or "", *told.notes))
    csv, _ = gpus_seen.parse_csv(ROW.replace("NVIDIA", "\x1b[31m"), FIELDS)
    assert csv[0].name.isprintable()


def test_the_gpus_that_nvidia_smi_lists_before_it_fails_on_another_are_kept(
    tmp_path: Path, smi: Callable[[str], str]
) -> None:
    lost = "Unable to determine the device handle for GPU1: 0000:02:00.0: Unknown Error"
    seen = look(tmp_path, smi(f'echo "{ROW}"; echo "{lost}"; exit 14'))
    assert [gpu.name for gpu in seen.gpus] == ["NVIDIA GeForce RTX 5060"]
    assert seen.driver.version == "576.02"
    assert any("ended with code 14" in note for note in seen.notes)


@pytest.mark.parametrize(
    ("device", "driver", "last"),
    [
        ("0x1c8d", "595.71.05", "580"),  # GTX 1050
        ("0x1db1", "590.44.01", "580"),  # V100
        ("0x102d", "535.54.03", "470"),  # K80
        ("0x1287", "495.29.05", "470"),  # GeForce GT 730 of Kepler's
        ("0x1140", "535.54.03", ""),  # GeForce 820M of Fermi's, which 470 does not drive either
        ("0x1c8d", "582.28", ""),  # of the branch that begins with 580
        ("0x1c8d", "580.95.05", ""),
        ("0x2d04", "595.71.05", ""),  # RTX 5060 Ti
        ("0x1e04", "595.71.05", ""),  # RTX 2080 Ti
    ],
)
def test_a_driver_too_new_for_the_card_on_the_bus_is_told_by_the_cards_number(
    tmp_path: Path, device: str, driver: str, last: str
) -> None:
    folder = tmp_path / "sys/bus/pci/devices/0000:01:00.0"
    folder.mkdir(parents=True)
    for name, text in (("vendor", "0x10de"), ("class", "0x030000"), ("device", device)):
        (folder / name).write_text(text + "\n")
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text(driver + "\n")
    seen = look(tmp_path, None)
    assert seen.last_driver == last
    assert any("no longer drives" in note for note in seen.notes) == bool(last)
