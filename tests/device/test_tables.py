"""The tables agree with one another and with what the program takes them to be."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ambidex.device import builds, variants
from ambidex.device.machine import Arch, Driver, Gpu, Machine
from ambidex.device.version import numbers

ROWS = variants.rows()


def test_every_variant_of_the_contract_is_there() -> None:
    names = ["cpu", "cu126", "cu128", "cu130", "cu132", "nightly-cu130", "cu124", "nightly-cu124", "cu121"]
    assert list(ROWS) == names
    assert (ROWS["cpu"]["torch"], ROWS["cu130"]["torch"]) == ("2.13.0", "2.13.0"), (
        "the two images differ in device alone"
    )
    assert (ROWS["nightly-cu124"]["torch"], ROWS["nightly-cu124"]["state"]) == ("2.7.0.dev20250310", "frozen")
    assert (ROWS["cu121"]["torch"], ROWS["cu121"]["state"]) == ("2.5.1", "known")
    assert "torch" not in ROWS["nightly-cu130"], "it floats"
    assert "sm_120" in ROWS["nightly-cu124"]["says"]


@pytest.mark.parametrize(
    "name", [name for name, row in ROWS.items() if row["channel"] == "stable" and "cuda" in row]
)
def test_a_stable_variant_says_what_the_table_of_builds_says(name: str) -> None:
    row = ROWS[name]
    on_index = [found for found in builds.releases("linux", "x86_64") if found.tag == row["local"]]
    pinned = builds.find(f"{row['torch']}+{row['local']}", "linux", "x86_64")
    assert pinned
    assert row["newest"] == on_index[-1].torch
    assert (row["cuda"], row["archs"]) == (pinned.cuda, [str(arch) for arch in pinned.archs])
    assert tuple(row["pythons"]) == pinned.pythons
    assert row["index"] == pinned.index
    for os in row["oses"]:
        assert builds.find(pinned.version, os, "x86_64")
        assert row["min_driver"][os] == builds.cuda_floor(row["cuda"], os)


def test_a_nightly_variant_agrees_with_what_the_table_knows_of_nightlies() -> None:
    row = ROWS["nightly-cu124"]
    known = builds.archs(f"{row['torch']}+{row['local']}", "linux", "x86_64")
    assert [str(arch) for arch in known or ()] == row["archs"]


def test_every_index_is_the_official_one() -> None:
    for row in ROWS.values():
        assert re.fullmatch(r"https://download\.pytorch\.org/whl/(nightly/)?(cpu|cu\d+)", row["index"])
        assert row["index"].endswith("/" + row["local"])


def test_every_build_has_evidence_and_entries_that_its_cuda_can_make() -> None:
    for os, machine in [("linux", "x86_64"), ("linux", "aarch64"), ("windows", "x86_64")]:
        for row in builds.releases(os, machine):
            assert row.evidence
            assert numbers(row.pythons[0]) < numbers(row.pythons[1])
            for arch in row.archs:
                first, dropped = (
                    builds.first_toolkit((arch.major, arch.minor)),
                    builds.dropped_by((arch.major, arch.minor)),
                )
                assert first is None or numbers(first) <= numbers(row.cuda), f"{row.version} {arch}"
                assert dropped is None or numbers(row.cuda) < numbers(dropped), f"{row.version} {arch}"


def test_machine_code_for_windows_differs_as_the_facts_say() -> None:
    windows, linux = (builds.archs("2.5.1+cu121", os, "x86_64") for os in ("windows", "linux"))
    assert windows
    assert linux
    assert set(windows) - set(linux) == {Arch("sm", 6, 1)}
    assert Arch("compute", 3, 7) in (builds.archs("2.6.0+cu118", "windows", "x86_64") or ())


def test_what_nobody_has_seen_is_not_in_the_table() -> None:
    for version in ("2.12.0+cu129", "2.15.0+cu126", "2.5.2+cu121", "2.6.0+cu121", "2.16.0+cu134"):
        assert builds.archs(version, "linux", "x86_64") is None, version
    assert builds.archs("2.9.1+cu129", "windows", "x86_64") is None
    assert builds.archs("2.6.0.dev20241122+cu124", "linux", "x86_64") is None, "the day of the change"


def test_a_newer_driver_speaks_a_newer_cuda() -> None:
    for os in ("linux", "windows"):
        table = builds.table()["drivers"]["cuda"][os]
        assert [numbers(driver) for driver in table] == sorted(numbers(driver) for driver in table)
        assert [numbers(cuda) for cuda in table.values()] == sorted(numbers(cuda) for cuda in table.values())
        for driver, cuda in table.items():
            assert builds.driver_cuda(Driver(driver), os) == tuple(numbers(cuda))
    assert builds.driver_cuda(Driver("576.02"), "windows") == (12, 9)
    assert builds.driver_cuda(Driver("300.00"), "linux") is None


@pytest.mark.parametrize(
    ("gpu", "driver", "python", "fits"),
    [
        ("12.0", "576.02", "3.11", ["cpu", "cu128"]),
        ("12.0", "580.95.05", "3.11", ["cpu", "cu128", "cu130", "cu132"]),
        ("6.1", "580.95.05", "3.11", ["cpu", "cu126", "cu124", "nightly-cu124", "cu121"]),
        ("8.6", "470.82.01", "3.11", ["cpu"]),
        ("8.6", "535.54.03", "3.9", ["cu124", "nightly-cu124", "cu121"]),
        ("", "", "3.11", ["cpu"]),
    ],
)
def test_the_variants_that_fit_are_told(gpu: str, driver: str, python: str, fits: list[str]) -> None:
    cc = numbers(gpu)
    gpus = (Gpu("a GPU", (cc[0], cc[1])),) if cc else ()
    table = variants.table(Machine(python=python, gpus=gpus, driver=Driver(driver or None)))
    assert [row["name"] for row in table if row["fits"]] == fits
    assert all(row["because"] for row in table)


def test_a_floating_nightly_is_neither_fitting_nor_unfit() -> None:
    machine = Machine(gpus=(Gpu("a GPU", (12, 0)),), driver=Driver("595.71.05"))
    row = next(row for row in variants.table(machine) if row["name"] == "nightly-cu130")
    assert row["fits"] is None


def test_the_printed_table_says_of_the_frozen_nightly_that_it_has_no_rtx_50() -> None:
    text = variants.render(variants.table(Machine()))
    assert "2.7.0.dev20250310, CUDA 12.4, frozen" in text
    assert "2025-03-10" in text
    assert len(text.splitlines()) == 2 * len(ROWS)


def test_the_rules_import_in_little_time_and_bring_no_torch() -> None:
    program = (
        "import sys, time; start = time.process_time(); from ambidex.device import rules, whatif;"
        "rules.judge(whatif.machine_from(torch='2.5.1+cu121', gpu='RTX 5060', driver='576.02'));"
        "took = time.process_time() - start;"
        "heavy = {'torch', 'numpy', 'pydantic', 'packaging'} & {name.split('.')[0] for name in sys.modules};"
        "print(took, *heavy)"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout.split()
        for _ in range(3)
    ]
    assert all(len(found) == 1 for found in runs), runs
    assert min(float(found[0]) for found in runs) < 0.4, (
        "seconds of CPU, which a busy machine does not stretch"
    )
