"""The image's record, read at start: what it says, how old it is, and which image to take instead."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from ambidex.device import gpus, image
from ambidex.device.diagnosis import Cause, Diagnosis, Fix
from ambidex.device.machine import Driver, Gpu, Machine

ARCHS = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


def lay(root: Path, **changes: Any) -> Path:
    record = {
        "variant": "cu124",
        "row": {"channel": "stable", "state": "frozen", "says": "2.6.0 is its last torch."},
        "torch": {"version": "2.6.0+cu124", "archs": ARCHS},
        "project": {"version": "0.1.0", "revision": "abc"},
        **changes,
    }
    file = root / image.RECORD
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(record), "utf-8")
    return root


def test_no_record_is_no_image(tmp_path: Path) -> None:
    assert image.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"variant": "cpu"}'])
def test_a_record_that_cannot_be_read_is_no_image(tmp_path: Path, text: str) -> None:
    file = tmp_path / image.RECORD
    file.parent.mkdir(parents=True)
    file.write_text(text, "utf-8")
    assert image.read(tmp_path) is None


def test_a_frozen_variant_says_what_it_can_run_and_that_it_is_frozen(tmp_path: Path) -> None:
    found = image.read(lay(tmp_path))
    assert found is not None
    assert found.introduction() == (
        "cu124: torch 2.6.0+cu124, code for sm_50 to sm_90 and no PTX; frozen: 2.6.0 is its last torch."
    )


def test_a_nightly_states_its_age(tmp_path: Path) -> None:
    row = {"channel": "nightly", "state": "living"}
    torch = {"version": "2.15.0.dev20261120+cu130", "archs": ["sm_120"]}
    found = image.read(
        lay(tmp_path, variant="nightly-cu130", row=row, torch=torch, nightly_date="2026-11-20")
    )
    assert found is not None
    assert found.age(date(2026, 11, 22)) == "a nightly of 2026-11-20, 2 days old"
    assert found.age(date(2026, 11, 21)) == "a nightly of 2026-11-20, 1 day old"
    assert "2 days old" in found.introduction(date(2026, 11, 22))


def machine(*names: str, driver: str = "580.65") -> Machine:
    found = tuple(Gpu(known.name, known.cc, index) for index, known in enumerate(map(gpus.find, names)))
    return Machine(gpus=found, driver=Driver(driver, (13, 0)))


def test_the_image_for_a_new_gpu_is_the_stable_service(tmp_path: Path) -> None:
    fix = image.instead(image.read(lay(tmp_path)), machine("RTX 5060"))
    assert fix is not None
    assert fix.commands == ("docker compose run --rm train-gpu",)
    assert "sm_120" in fix.why


def test_the_image_for_an_old_gpu_is_a_variant_of_the_other_service(tmp_path: Path) -> None:
    torch = {"version": "2.13.0+cu130", "archs": ["sm_75", "sm_120"]}
    inside = image.read(lay(tmp_path, variant="cu130", torch=torch))
    fix = image.instead(inside, machine("GTX 1080"))
    assert fix is not None
    assert fix.commands == ("GPU_VARIANT=cu126 docker compose run --rm train-gpu-nightly",)


def test_nothing_is_said_where_this_image_fits_or_no_gpu_is_known(tmp_path: Path) -> None:
    inside = image.read(lay(tmp_path))
    assert image.instead(inside, machine("H100")) is None
    assert image.instead(inside, Machine(), tmp_path) is None
    assert image.instead(None, machine("RTX 5060")) is None


def test_a_container_without_a_gpu_knows_the_host_s(tmp_path: Path) -> None:
    lay(tmp_path, variant="cpu", torch={"version": "2.13.0+cpu", "archs": []})
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA GeForce RTX 5060\nIRQ:   \t\t 142\n", "utf-8")
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "utf-8"
    )
    fix = image.instead(image.read(tmp_path), Machine(), tmp_path)
    assert fix is not None
    assert fix.commands == ("docker compose run --rm train-gpu",)
    assert image.host_gpus(tmp_path)[1] == Driver("580.65.06")


def test_an_image_is_not_changed_from_inside(tmp_path: Path) -> None:
    """What would be installed gives way to the image; a driver to update stays."""
    install, driver = Fix(("pip install torch",), ("torch",)), Fix(requires={"driver": "580"})
    before = Diagnosis("none", 20, Cause("ARCH_NONE", "no code"), fixes=(install, driver))
    after = image.with_image(before, image.read(lay(tmp_path)), machine("RTX 5060"))
    assert after.fixes[0].commands == ("docker compose run --rm train-gpu",)
    assert after.fixes[1:] == (driver,)
    assert image.with_image(before, None, machine("RTX 5060")) is before
