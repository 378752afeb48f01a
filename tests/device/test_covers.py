"""Properties of the rule that says which code runs on which GPU, over every entry and every GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ambidex.device import rules
from ambidex.device.covers import covers, driver_allows, verdict
from ambidex.device.diagnosis import Kind
from ambidex.device.machine import Arch, Build, Driver, Gpu, Machine

TEGRA = [(5, 3), (6, 2), (7, 2), (8, 7)]
CAPABILITIES = [
    *[(3, 5), (3, 7), (5, 0), (5, 2), (6, 0), (6, 1), (7, 0), (7, 5), (8, 0), (8, 6), (8, 8), (8, 9), (9, 0)],
    *[(10, 0), (10, 1), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0), *TEGRA],
]
capabilities = st.sampled_from(CAPABILITIES)
suffixes = st.sampled_from(["", "a", "f"])
cudas = st.sampled_from([(11, 8), (12, 1), (12, 8), (12, 9), (13, 0), (13, 2)])
entries = st.builds(
    lambda kind, cc, suffix: Arch(kind, *cc, suffix),
    st.sampled_from(["sm", "compute"]),
    capabilities,
    suffixes,
)
RANK: dict[Kind, int] = {"none": 0, "unknown": 0, "jit": 1, "same-major": 2, "native": 3}


def silicon(cc: tuple[int, int]) -> tuple[int, int]:
    return (11, 0) if cc == (10, 1) else cc


@given(capabilities, st.sampled_from(["", "a", "f"]))
def test_code_for_the_very_gpu_is_native_whatever_its_suffix(cc: tuple[int, int], suffix: str) -> None:
    assert covers(Arch("sm", *cc, suffix), cc) == "native"  # type: ignore[arg-type]


@given(entries, capabilities, cudas)
def test_machine_code_never_leaves_its_major(entry: Arch, cc: tuple[int, int], cuda: tuple[int, int]) -> None:
    if entry.kind == "sm" and covers(entry, cc, build_cuda=cuda) != "none":
        assert silicon((entry.major, entry.minor))[0] == silicon(cc)[0]
        assert silicon(cc) >= silicon((entry.major, entry.minor))


@given(entries, capabilities)
def test_nothing_runs_on_an_older_gpu_than_it_was_made_for(entry: Arch, cc: tuple[int, int]) -> None:
    made_for = (entry.major, entry.minor)
    plain_ptx = entry.kind == "compute" and not entry.suffix
    if silicon(cc) < (made_for if plain_ptx else silicon(made_for)):
        assert covers(entry, cc) == "none"


def test_ptx_of_thors_first_number_runs_where_ptxas_compiles_it() -> None:
    ran = {cc: covers(Arch("compute", 10, 1), cc) for cc in [(10, 0), (10, 1), (10, 3), (11, 0), (12, 0)]}
    assert list(ran.values()) == ["none", "jit", "jit", "jit", "jit"]


@given(entries, capabilities)
def test_an_a_entry_runs_on_exactly_one_capability(entry: Arch, cc: tuple[int, int]) -> None:
    if entry.suffix == "a":
        assert (covers(entry, cc) != "none") == (silicon((entry.major, entry.minor)) == silicon(cc))


@given(entries, capabilities)
def test_an_f_entry_stays_in_its_family(entry: Arch, cc: tuple[int, int]) -> None:
    code, gpu = silicon((entry.major, entry.minor)), silicon(cc)
    if entry.suffix == "f":
        assert (covers(entry, cc) != "none") == (code[0] == gpu[0] and gpu[1] >= code[1])


@given(entries, capabilities)
def test_ptx_is_compiled_and_machine_code_is_not(entry: Arch, cc: tuple[int, int]) -> None:
    assert covers(entry, cc) in (
        ("none", "jit") if entry.kind == "compute" else ("none", "same-major", "native")
    )


@given(capabilities, capabilities, cudas, cudas)
def test_ptx_reaches_every_later_gpu_if_the_driver_knows_its_cuda(
    made: tuple[int, int], cc: tuple[int, int], speaks: tuple[int, int], cuda: tuple[int, int]
) -> None:
    found = covers(Arch("compute", *made), cc, driver_cuda=speaks, build_cuda=cuda)
    assert (found == "jit") == (silicon(cc) >= made and speaks >= cuda)


@given(st.sampled_from(TEGRA), capabilities, cudas)
def test_an_integrated_gpu_and_the_others_share_no_machine_code(
    tegra: tuple[int, int], other: tuple[int, int], cuda: tuple[int, int]
) -> None:
    if tegra == other:
        return
    assert covers(Arch("sm", *tegra), other, build_cuda=cuda) == "none"
    on_orin = tegra == (8, 7) and cuda >= (13, 2) and other in [(8, 0), (8, 6)]
    assert (covers(Arch("sm", *other), tegra, build_cuda=cuda) != "none") == on_orin


@given(st.lists(entries, max_size=5), entries, capabilities)
@settings(max_examples=200)
def test_one_entry_more_never_makes_a_verdict_worse(
    some: list[Arch], more: Arch, cc: tuple[int, int]
) -> None:
    build = Build("2.13.0+cu130", "13.0", archs=tuple(some), source="scanned")
    before = verdict(build, Gpu("a GPU", cc))
    after = verdict(replace(build, archs=(*some, more)), Gpu("a GPU", cc))
    assert RANK[after.kind] >= RANK[before.kind]


@given(st.lists(entries, max_size=5), capabilities, st.permutations(range(5)))
def test_the_order_of_the_list_changes_nothing(
    some: list[Arch], cc: tuple[int, int], order: list[int]
) -> None:
    shuffled = [some[n] for n in order if n < len(some)]
    first, second = (
        verdict(Build("2.13.0+cu130", "13.0", archs=tuple(listed)), Gpu("a GPU", cc))
        for listed in (some, shuffled)
    )
    assert (first.kind, first.covered_by) == (second.kind, second.covered_by)


@given(st.lists(entries, max_size=5), capabilities, cudas, cudas)
def test_a_newer_driver_never_makes_a_verdict_worse(
    some: list[Arch], cc: tuple[int, int], one: tuple[int, int], other: tuple[int, int]
) -> None:
    build = Build("2.13.0+cu130", "13.0", archs=tuple(some))
    older, newer = (verdict(build, Gpu("a GPU", cc), Driver(cuda=cuda)) for cuda in sorted([one, other]))
    assert RANK[newer.kind] >= RANK[older.kind]


@given(st.lists(entries, min_size=1, max_size=5), capabilities)
def test_what_covers_is_named_and_really_covers(some: list[Arch], cc: tuple[int, int]) -> None:
    found = verdict(Build("2.13.0+cu130", "13.0", archs=tuple(some)), Gpu("a GPU", cc))
    assert found.reason
    if found.runs:
        assert covers(Arch.parse(found.covered_by), cc, build_cuda=(13, 0)) == found.kind
        assert Arch.parse(found.covered_by) in some
    else:
        assert not found.covered_by


@pytest.mark.parametrize(
    ("build", "word"),
    [
        (Build("2.13.0+cpu", archs=()), "CPU build"),
        (Build("2.13.0+rocm7.2", hip="7.2", archs=()), "ROCm build"),
        (Build("2.13.0+xpu", archs=()), "XPU build"),
    ],
)
def test_a_build_without_cuda_is_none_and_says_which_kind_it_is(build: Build, word: str) -> None:
    found = verdict(build, Gpu("a GPU", (8, 9)))
    assert (found.kind, word in found.reason) == ("none", True)


def test_a_gpu_of_unknown_capability_is_unknown() -> None:
    assert verdict(Build("2.13.0+cu130", "13.0"), Gpu("a GPU", None)).kind == "unknown"


def test_a_list_that_was_read_outranks_the_table() -> None:
    read = Build("2.15.0+cu130", "13.0", archs=(Arch("sm", 6, 1),), source="scanned")
    assert verdict(read, Gpu("GTX 1080", (6, 1))).kind == "native"
    assert verdict(replace(read, archs=None), Gpu("GTX 1080", (6, 1))).kind == "none"


def test_the_nearest_entry_is_the_one_named() -> None:
    build = Build("2.13.0+cu130", "13.0", archs=tuple(Arch.parse(f"sm_{n}") for n in (75, 80, 86, 90)))
    assert verdict(build, Gpu("RTX 4090", (8, 9))).covered_by == "sm_86"


@pytest.mark.parametrize(
    ("cuda", "cc", "build", "allowed"),
    [
        ((12, 4), (12, 0), "12.8", False),
        ((12, 8), (12, 0), "12.8", True),
        ((12, 4), (8, 9), "12.8", True),
        ((12, 9), (8, 9), "13.0", False),
        ((12, 4), (10, 1), "12.8", True),
    ],
)
def test_a_driver_known_by_its_cuda_alone_is_judged_by_it(
    cuda: tuple[int, int], cc: tuple[int, int], build: str, allowed: bool
) -> None:
    found = driver_allows(Driver(cuda=cuda), Build("2.11.0", build), Gpu("a GPU", cc), "linux")
    assert found == allowed


def test_a_branch_of_the_driver_stands_for_its_newest() -> None:
    build, gpu = Build("2.11.0+cu128", "12.8"), Gpu("RTX 4090", (8, 9))
    assert driver_allows(Driver("525"), build, gpu, "linux")
    assert not driver_allows(Driver("525.53"), build, gpu, "linux")


@pytest.mark.parametrize(
    ("driver", "allowed"),
    [
        (Driver("590.44.01", (13, 1)), False),
        (Driver("590.44.01"), False),
        (Driver("700.10", (14, 0)), True),
        (Driver("700.10"), True),  # newer than the table: what it speaks is not known
        (Driver(None, (13, 1)), False),
    ],
)
def test_a_build_of_a_cuda_newer_than_the_table_needs_a_driver_that_speaks_it(
    driver: Driver, allowed: bool
) -> None:
    build = Build("2.19.0+cu140", "14.0", archs=(Arch("sm", 12, 0),), source="scanned")
    gpu = Gpu("NVIDIA GeForce RTX 5090", (12, 0))
    assert driver_allows(driver, build, gpu, "linux") == allowed
    found = rules.judge(Machine(build=build, gpus=(gpu,), driver=driver))
    assert (found.cause.id == "OK") == allowed
    if not allowed:
        assert found.cause.text.endswith("needs one that speaks CUDA 14.")
        assert found.fixes


@pytest.mark.parametrize(("name", "allowed"), [
    ("NVIDIA A10G", True), ("NVIDIA A100-SXM4-80GB", True), ("NVIDIA A30X", True), ("Tesla T4", True), ("NVIDIA L40S", True), ("NVIDIA H100 PCIe", True),
    ("NVIDIA A400", False), ("NVIDIA A500 Laptop GPU", False), ("NVIDIA T1000", False), ("Quadro P2000", False), ("NVIDIA RTX A6000", False),
    ("", False),
])  # fmt: skip
def test_forward_compatibility_is_for_datacentre_gpus_alone(name: str, allowed: bool) -> None:
    build = Build("2.9.0+cu130", "13.0", archs=(Arch("sm", 8, 0),), source="table")
    compat = Driver(
        "535.183.01", (13, 0)
    )  # of an image with cuda-compat: the library speaks CUDA 13, the driver 12.2
    assert driver_allows(compat, build, Gpu(name, (8, 0)), "linux") is allowed
