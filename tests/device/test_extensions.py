"""A library's GPU code is told from its headers alone, and a damaged one ends in a sentence."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from built_machines import archs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambidex.device import extensions, fatbin
from ambidex.device.machine import Arch


def entry(text: str, code: bytes = b"\x7fELF" + b"\0" * 60) -> bytes:
    """One entry of a fat binary, with the layout that nvcc was seen to write."""
    arch = Arch.parse(text)
    flags = 0x2011 | (0x100000 if arch.suffix == "a" else 0)
    head = struct.pack(
        "<HHIQIIHHIIIQ",
        2 if arch.kind == "sm" else 1,
        0x101,
        72,
        len(code),
        0,
        0,
        7,
        1,
        arch.major * 10 + arch.minor,
        0,
        0,
        flags,
    )
    return head.ljust(72, b"\0") + code


def container(*texts: str) -> bytes:
    body = b"".join(entry(text) for text in texts)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def library(*containers: bytes, section: bytes = b".nv_fatbin", before: bytes = b"") -> bytes:
    """A 64-bit ELF file with the containers in a section of that name."""
    code = b"".join(containers)
    names = b"\0" + section + b"\0.shstrtab\0"
    start = 64 + len(before)
    table = start + len(code) + len(names)
    head = (
        b"\x7fELF\x02\x01\x01" + b"\0" * 9 + struct.pack("<HHI", 3, 62, 1) + struct.pack("<QQQ", 0, 0, table)
    )
    head += struct.pack("<IHHHHHH", 0, 64, 56, 0, 64, 3, 2)
    rows = b"\0" * 64
    rows += struct.pack("<IIQQQQIIQQ", 1, 1, 0, 0, start, len(code), 0, 0, 1, 0)
    rows += struct.pack("<IIQQQQIIQQ", len(section) + 2, 3, 0, 0, start + len(code), len(names), 0, 0, 1, 0)
    return head + before + code + names + rows


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site-packages"
    folder.mkdir()
    return folder


def put(place: Path, name: str, content: bytes) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.ljust(5000, b"\0") if len(content) < 5000 else content)
    return path


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "listed", ["sm_80", "sm_50 sm_86 sm_90a", "compute_90", "sm_75 sm_90 sm_120 compute_120"]
)
def test_every_entry_of_every_container_is_found(tmp_path: Path, listed: str) -> None:
    words = listed.split()
    content = library(*(container(word) for word in words), container(*words))
    assert fatbin.archs_in(write(tmp_path / "x.so", content)) == tuple(sorted(archs(listed)))


def test_relocatable_code_counts_and_another_section_does_not(tmp_path: Path) -> None:
    relocatable = library(container("sm_80"), section=b"__nv_relfatbin")
    assert fatbin.archs_in(write(tmp_path / "x.so", relocatable)) == archs("sm_80")
    elsewhere = library(container("sm_80"), section=b".rodata")
    assert fatbin.archs_in(write(tmp_path / "y.so", elsewhere)) == ()


def test_the_magic_by_chance_is_no_container(tmp_path: Path) -> None:
    chance = struct.pack("<I", 0xBA55ED50) + b"\xff" * 64
    content = library(chance, container("sm_86"))
    assert fatbin.archs_in(write(tmp_path / "x.so", content)) == archs("sm_86")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=80)
@given(cut=st.integers(0, 2000), noise=st.binary(max_size=64), at=st.integers(0, 2000))
def test_no_damage_breaks_the_reader(tmp_path: Path, cut: int, noise: bytes, at: int) -> None:
    content = bytearray(library(container("sm_50", "sm_86"), container("compute_90")))
    content[at : at + len(noise)] = noise
    fatbin.archs_in(write(tmp_path / "x.so", bytes(content[: max(cut, 1)])))


def test_packages_with_gpu_code_are_named_with_all_that_their_libraries_have(site: Path) -> None:
    put(site, "gsplat/csrc.so", library(container("sm_80")))
    put(site, "gsplat/more.so", library(container("sm_90")))
    put(site, "numpy/core.so", library())
    scan = extensions.scan([site])
    assert [(one.name, one.archs) for one in scan.extensions] == [("gsplat", archs("sm_80 sm_90"))]
    assert scan.libraries == 3


def test_torch_and_nvidias_own_packages_are_left_out(site: Path) -> None:
    for name in ("torch/lib/libtorch_cuda.so", "nvidia/cudnn/lib/libcudnn.so.9", "triton/_C/libtriton.so"):
        put(site, name, library(container("sm_50")))
    put(site, "cusparselt/lib/libcusparseLt.so.0", library(container("sm_80")))
    record = site / "nvidia_cusparselt_cu12-0.6.2.dist-info/RECORD"
    record.parent.mkdir()
    record.write_text("cusparselt/lib/libcusparseLt.so.0,sha256=x,1\n")
    assert extensions.scan([site]).extensions == ()


def test_a_bare_library_bears_the_name_of_the_package_that_installed_it(site: Path) -> None:
    put(site, "flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so", library(container("sm_80", "sm_90")))
    record = site / "flash_attn-2.8.3.dist-info/RECORD"
    record.parent.mkdir()
    record.write_text("flash_attn_2_cuda.cpython-311-x86_64-linux-gnu.so,sha256=x,1\n")
    assert extensions.scan([site]).extensions[0].name == "flash_attn"


def test_what_is_known_is_not_read_again_until_it_changes(site: Path, tmp_path: Path) -> None:
    path = put(site, "gsplat/csrc.so", library(container("sm_80")))
    keep = tmp_path / "cache/extensions.json"
    assert extensions.scan([site], keep=keep).read == 1
    again = extensions.scan([site], keep=keep)
    assert (again.read, again.extensions[0].archs) == (0, archs("sm_80"))
    path.write_bytes(library(container("sm_80", "sm_120"), before=b"\0" * 6000))
    assert extensions.scan([site], keep=keep).extensions[0].archs == archs("sm_80 sm_120")


@pytest.mark.parametrize("rubbish", [b"", b"{", b"[]", b'{"x": 1}', b"\xff\xfe"])
def test_a_cache_of_rubbish_is_done_without(site: Path, tmp_path: Path, rubbish: bytes) -> None:
    put(site, "gsplat/csrc.so", library(container("sm_80")))
    keep = write(tmp_path / "extensions.json", rubbish)
    assert len(extensions.scan([site], keep=keep).extensions) == 1


def test_a_cache_that_cannot_be_written_is_done_without(site: Path) -> None:
    put(site, "gsplat/csrc.so", library(container("sm_80")))
    assert extensions.scan([site], keep=Path("/proc/nowhere/extensions.json")).extensions


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_library_that_cannot_be_read_is_a_sentence(site: Path) -> None:
    put(site, "gsplat/csrc.so", library(container("sm_80"))).chmod(0)
    assert "could not be read" in extensions.scan([site]).notes[0]


def test_a_scan_that_takes_too_long_says_how_far_it_came(site: Path) -> None:
    put(site, "gsplat/csrc.so", library(container("sm_80")))
    assert "stopped after" in extensions.scan([site], seconds=-1.0).notes[0]


def test_a_library_of_the_wrong_bytes_is_no_extension(site: Path) -> None:
    for number, content in enumerate(
        (b"", b"MZ", b"\x7fELF", b"\x7fELF" + b"\xff" * 6000, b"MZ" + b"\xff" * 6000)
    ):
        put(site, f"p{number}/x.so", content)
    assert extensions.scan([site]).extensions == ()
