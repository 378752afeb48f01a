"""A build is read from its files, whatever state they are in, and torch is never imported for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from built_machines import A_LIST, elf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambidex.device import environment, installed, rules
from ambidex.device.machine import Build, Machine

Install = Callable[..., Path]


def read(folder: Path) -> Build:
    return installed.read(environment.at(folder))


def site(folder: Path) -> Path:
    return folder / "lib/python3.11/site-packages"


def test_version_cuda_and_list_come_from_the_files(install: Install) -> None:
    build = read(install())
    assert (build.version, build.cuda, build.python) == ("2.5.1+cu121", "12.1", "3.11")
    assert " ".join(map(str, build.archs or ())) == A_LIST
    assert (build.source, build.missing, build.broken) == ("scanned", "", "")


def test_a_cpu_build_has_an_empty_list_and_a_rocm_build_none(install: Install) -> None:
    assert read(install("2.13.0+cpu", None)).archs == ()
    rocm = read(install("2.9.0+rocm6.4", None, hip="6.4.43482", at="rocm"))
    assert (rocm.archs, rocm.hip) == (None, "6.4.43482")


@pytest.mark.parametrize("listed", ["sm_90", "compute_120", "sm_90a", "sm_80 sm_90a sm_100f compute_120"])
def test_a_list_of_any_length_and_suffix_is_found(install: Install, listed: str) -> None:
    assert " ".join(map(str, read(install(listed=listed)).archs or ())) == listed


def test_the_list_is_not_taken_for_another_string_that_looks_like_it(install: Install) -> None:
    decoys = b"sm_99\0built for sm_10 sm_20\0" + A_LIST.encode() + b"\0-gencode=arch=compute_80,code=sm_80\0"
    assert " ".join(map(str, read(install(library=elf(decoys))).archs or ())) == A_LIST


def test_a_windows_library_is_read_like_any_other(install: Install) -> None:
    folder = install(library=b"")
    library = site(folder) / "torch/lib/libtorch_python.so"
    library.unlink()
    library.with_name("torch_python.dll").write_bytes(b"\0" * 100 + A_LIST.encode() + b"\0")
    assert len(read(folder).archs or ()) == 7


def test_a_missing_version_file_is_a_sentence_and_the_version_still_known(install: Install) -> None:
    build = read(install(version=None))
    assert "version.py is missing" in build.broken
    assert build.version == "2.5.1+cu121"


@pytest.mark.parametrize("kept", [0, 40, 4000, -1])
def test_a_truncated_library_is_called_damaged(install: Install, kept: int) -> None:
    folder = install()
    library = site(folder) / "torch/lib/libtorch_python.so"
    library.write_bytes(library.read_bytes()[:kept])
    assert "libtorch_python.so" in read(folder).broken


def test_any_library_of_torch_that_is_cut_short_is_found(install: Install) -> None:
    folder = install()
    (site(folder) / "torch/lib/libtorch_cuda.so").write_bytes(elf(b"x")[:200])
    assert "libtorch_cuda.so is cut short" in read(folder).broken


def test_a_library_that_the_record_lists_and_that_is_gone_is_named(install: Install) -> None:
    folder = install("2.13.0+cpu", None)
    record = site(folder) / "torch-2.5.1+cu121.dist-info/RECORD"
    record.write_text("torch/__init__.py,sha256=x,0\ntorch/lib/libtorch_cpu.so,sha256=x,99\n")
    assert "libtorch_cpu.so is missing" in read(folder).broken


def test_a_cuda_build_without_its_library_is_broken(install: Install) -> None:
    folder = install()
    (site(folder) / "torch/lib/libtorch_python.so").unlink()
    assert "no libtorch_python" in read(folder).broken


def test_what_an_uninstall_left_behind_is_no_torch(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.11/site-packages/torch/__pycache__").mkdir(parents=True)
    build = read(tmp_path)
    assert build.missing
    assert "left behind" in build.missing


def test_no_torch_is_missing_not_broken(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.12/site-packages").mkdir(parents=True)
    build = read(tmp_path)
    assert "No torch" in build.missing
    assert build.python == "3.12"


def test_a_cuda_that_the_version_file_does_not_name_is_read_from_the_tag(install: Install) -> None:
    folder = install()
    (site(folder) / "torch/version.py").write_text("__version__ = '2.7.1+cu118'\n")
    assert read(folder).cuda == "11.8"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(
    rubbish=st.one_of(
        st.binary(max_size=300), st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_a_version_file_of_rubbish_never_raises(install: Install, tmp_path: Path, rubbish: bytes) -> None:
    folder = tmp_path / "env"
    if not folder.exists():
        install()
    (site(folder) / "torch/version.py").write_bytes(rubbish)
    build = read(folder)
    assert build.broken or build.version


def test_a_library_of_fifty_megabytes_is_read_in_little_time(install: Install) -> None:
    folder = install(library=elf(A_LIST.encode(), padding=50_000_000))
    began = time.process_time()
    assert len(read(folder).archs or ()) == 7
    assert time.process_time() - began < 2.0, "seconds of this processor"


@pytest.mark.wheels
def test_the_list_read_from_a_real_wheel_is_the_one_that_torch_reports() -> None:
    folders = os.environ.get("AMBIDEX_WHEELS", "")
    if not folders:
        pytest.skip("AMBIDEX_WHEELS names no environment with a real torch")
    for folder in folders.split(os.pathsep):
        where = environment.at(folder)
        program = "import torch; f = getattr(torch._C, '_cuda_getArchFlags', None); print(f() if f else '')"
        told = subprocess.run([where.program, "-c", program], capture_output=True, text=True, check=True)
        assert " ".join(map(str, installed.read(where).archs or ())) == told.stdout.strip()


def test_what_an_uninstall_left_behind_loses_to_a_later_package_as_in_python(
    install: Install, tmp_path: Path
) -> None:
    good = site(install())
    left = tmp_path / "left"
    (left / "torch/lib").mkdir(parents=True)
    there = environment.Environment("python", "3.11", tmp_path, (left, good))
    assert installed.find(there) == good / "torch"
    asked = "import sys; sys.path[:0] = sys.argv[1:]; import torch; print(torch.__file__)"
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", asked, str(left), str(good)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.strip() == str(good / "torch/__init__.py")
    alone = environment.Environment("python", "3.11", tmp_path, (left,))
    assert installed.find(alone) == left / "torch"


def test_the_record_of_an_older_torch_that_was_left_behind_is_not_believed(install: Install) -> None:
    folder = install("2.6.0+cu124", "12.4", installer="conda")
    old = site(folder) / "torch-2.5.1+cu121.dist-info"
    (old / "RECORD").write_text("torch/__init__.py,sha256=x,0\ntorch/lib/libgone.so,sha256=x,99\n")
    own = site(folder) / "torch-2.6.0+cu124.dist-info"
    own.mkdir()
    (own / "INSTALLER").write_text("pip\n")
    (own / "RECORD").write_text("torch/__init__.py,sha256=x,0\n")
    assert read(folder).broken == ""
    where = environment.at(folder)
    assert environment.installer_of(where, installed.find(where), {}) == "pip"
    (own / "RECORD").write_text("torch/lib/libmine.so,sha256=x,99\n")
    assert "libmine.so is missing" in read(folder).broken


def test_a_file_that_is_imported_in_torchs_place_is_named_and_nothing_is_to_be_installed(
    install: Install, tmp_path: Path
) -> None:
    where = environment.at(install())
    work = tmp_path / "work"
    work.mkdir()
    (work / "torch.py").write_text("print('mine')\n")
    found = installed.read(replace(where, places=(work, *where.places)))
    answer = rules.judge(Machine(build=found))
    assert answer.exit_code == 24
    assert str(work / "torch.py") in answer.cause.text
    assert [fix.commands for fix in answer.fixes] == [()]
    assert installed.read(replace(where, places=(*where.places, work))).broken == ""
