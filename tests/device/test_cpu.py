"""Threads, quota and instruction set are read where the kernel keeps them; rubbish there means no limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ambidex.device import cpu
from ambidex.device.ask import Answer
from ambidex.device.machine import Cpu

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(name: str, text: str) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)

    return put


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("max 100000", None),
        ("150000 100000\n", 1.5),
        ("50000 100000", 0.5),
        ("200000", 2.0),
        ("", None),
        ("0 100000", None),
        ("100000 0", None),
        ("-1 100000", None),
        ("nan 100000", None),
        ("inf 100000", None),
        ("a b c", None),
    ],
)
def test_quota_of_cgroup_v2(tmp_path: Path, write: Write, text: str, limit: float | None) -> None:
    write("sys/fs/cgroup/cpu.max", text)
    write("proc/self/cgroup", "0::/\n")
    assert cpu.quota(tmp_path) == limit


def test_the_tightest_group_up_the_tree_counts(tmp_path: Path, write: Write) -> None:
    write("proc/self/cgroup", "0::/user.slice/run-1.scope\n")
    write("sys/fs/cgroup/user.slice/run-1.scope/cpu.max", "max 100000")
    write("sys/fs/cgroup/user.slice/cpu.max", "300000 100000")
    write("sys/fs/cgroup/cpu.max", "800000 100000")
    assert cpu.quota(tmp_path) == 3.0


@pytest.mark.parametrize("mount", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize("inside", ["/", "/docker/0123456789abcdef"])
def test_quota_of_cgroup_v1(tmp_path: Path, write: Write, mount: str, inside: str) -> None:
    """In a container the path is the host's, while the mount begins at the group itself."""
    write("proc/self/cgroup", f"5:devices:{inside}\n1:{mount}:{inside}\n0::{inside}\n")
    write(f"sys/fs/cgroup/{mount}/cpu.cfs_quota_us", "100000\n")
    write(f"sys/fs/cgroup/{mount}/cpu.cfs_period_us", "100000\n")
    assert cpu.quota(tmp_path) == 1.0


def test_cgroup_v1_without_a_limit_says_minus_one(tmp_path: Path, write: Write) -> None:
    write("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    write("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cpu.quota(tmp_path) is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(text=st.one_of(st.text(max_size=40), st.text(alphabet="0123456789 .maxe-+\n", max_size=24)))
def test_a_quota_is_positive_or_none_whatever_the_file_holds(tmp_path: Path, text: str) -> None:
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
    (tmp_path / "sys/fs/cgroup/cpu.max").write_bytes(text.encode("utf-8", "replace"))
    limit = cpu.quota(tmp_path)
    assert limit is None or 0 < limit < float("inf")
    assert cpu.threads_for_training(Cpu(cores=4, affinity=4, quota=limit)) >= 1


@pytest.mark.parametrize(
    ("cores", "affinity", "quota", "threads"),
    [(8, 16, None, 8), (8, 16, 2.5, 2), (8, 16, 0.5, 1), (8, 3, None, 3), (1, 1, None, 1), (4, 8, 100.0, 4)],
)
def test_threads_are_the_physical_cores_within_affinity_and_quota(
    cores: int, affinity: int, quota: float | None, threads: int
) -> None:
    assert cpu.threads_for_training(Cpu(cores=cores, affinity=affinity, quota=quota)) == threads


def cpuinfo(processors: int, siblings: int, flags: str = "fpu avx2 fma") -> str:
    return "\n".join(
        f"processor\t: {number}\nmodel name\t: AMD EPYC\nphysical id\t: 0\ncore id\t\t: "
        f"{number // siblings}\nflags\t\t: {flags}\n"
        for number in range(processors)
    )


def test_two_hyperthreads_are_one_core(tmp_path: Path, write: Write) -> None:
    write("proc/cpuinfo", cpuinfo(8, 2))
    found = cpu.look(tmp_path, os_name="linux", affinity=range(8))
    assert (found.name, found.cores, found.affinity) == ("AMD EPYC", 4, 8)


def test_only_the_cores_of_the_affinity_count(tmp_path: Path, write: Write) -> None:
    write("proc/cpuinfo", cpuinfo(8, 2))
    assert cpu.look(tmp_path, os_name="linux", affinity={0, 1, 2}).cores == 2


def test_the_kernels_topology_outranks_cpuinfo(tmp_path: Path, write: Write) -> None:
    write("proc/cpuinfo", cpuinfo(4, 1))
    for number in range(4):
        write(
            f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list",
            f"{number % 2},{number % 2 + 2}",
        )
    assert cpu.look(tmp_path, os_name="linux", affinity=range(4)).cores == 2


def test_an_arm_processor_without_core_ids_counts_every_processor(tmp_path: Path, write: Write) -> None:
    block = "processor\t: {}\nFeatures\t: fp asimd sve bf16\nCPU implementer\t: 0x41\n"
    write("proc/cpuinfo", "\n".join(block.format(number) for number in range(4)))
    found = cpu.look(tmp_path, os_name="linux", affinity=range(4))
    assert (found.cores, found.isa) == (4, ("neon", "sve", "bf16"))


@pytest.mark.parametrize("text", ["", "rubbish", "processor: \nprocessor : x\ncore id : 1\n\n\n", "\0" * 100])
def test_a_cpuinfo_of_rubbish_leaves_the_affinity(tmp_path: Path, write: Write, text: str) -> None:
    write("proc/cpuinfo", text)
    assert cpu.look(tmp_path, os_name="linux", affinity=range(3)).cores == 3


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ("avx2 fma", False),
        ("avx512f avx512bw", False),
        ("avx512f avx512_bf16", True),
        ("amx_tile amx_bf16", True),
    ],
)
def test_bf16_is_worth_it_by_instruction_set_alone(
    tmp_path: Path, write: Write, flags: str, fast: bool
) -> None:
    write("proc/cpuinfo", cpuinfo(1, 1, flags))
    assert cpu.has_fast_bf16(cpu.look(tmp_path, os_name="linux", affinity={0}).isa) is fast


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({}, 4),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2,1"}, 2),
        ({"OMP_NUM_THREADS": "many"}, 4),
    ],
)
def test_the_threads_that_torch_takes_follow_the_environment(environ: dict[str, str], threads: int) -> None:
    assert cpu.threads_by_default(Cpu(cores=4, affinity=8, quota=1.0), environ) == threads


def test_a_mac_counts_its_performance_cores() -> None:
    told = {
        "hw.perflevel0.physicalcpu": "8",
        "hw.physicalcpu": "10",
        "hw.logicalcpu": "10",
        "machdep.cpu.brand_string": "Apple M3",
        "hw.optional.arm64": "1",
    }

    def sysctl(command: Sequence[str], **_: object) -> Answer:
        return Answer(told.get(command[-1], ""), "", 0)

    found = cpu.look(os_name="macos", put=sysctl)
    assert (found.name, found.cores, found.affinity, found.isa) == ("Apple M3", 8, 10, ("neon",))


def test_the_family_is_read_where_it_is_given(tmp_path: Path, write: Write) -> None:
    assert cpu.family(tmp_path) == 0
    write(
        "proc/cpuinfo",
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n\nprocessor\t: 1\ncpu family\t: 26\n",
    )
    assert cpu.family(tmp_path) == 25
    write("proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd40\n")
    assert cpu.family(tmp_path) == 0
