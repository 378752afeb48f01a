"""The pages that `compare` and `report` write, as Chromium shows them: no error, axe-core clean, readable and printable."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_page import EVIL, FAULTY, written

from ambidex import cli
from test_runpage import run_at

Page = Callable[[Path], Path]


def same(folder: Path) -> Path:
    return compared(folder, written(folder / "cpu"), written(folder / "avx2", off=1e-7))


def different(folder: Path) -> Path:
    faulty = written(folder / "gpu", off=1e-4, changed=FAULTY, card={"device": {"name": "cuda:0"}})
    return compared(folder, written(folder / "cpu"), written(folder / "bridge", off=1e-7), faulty)


def not_comparable(folder: Path) -> Path:
    return compared(
        folder, written(folder / "cpu"), written(folder / "other", card={"precision": "bf16"}, trace=False)
    )


def hostile(folder: Path) -> Path:
    name = EVIL.replace("/", "\u2215") * 2
    return compared(
        folder,
        written(folder / "a"),
        written(folder / name, card={"threads": EVIL * 50, "device": {"name": EVIL}}),
    )


def run(folder: Path) -> Path:
    path = run_at(folder / "run", steps=4)
    (path / "samples.md").write_text(
        f"## Step 4 of 8: x\n\n```text\n{'word ' * 400}{'x' * 900}{EVIL}\n```\n", "utf-8"
    )
    cli.main(["report", str(path)])
    return path / "report.html"


def compared(folder: Path, *paths: Path) -> Path:
    cli.main(["compare", *map(str, paths), "--html", str(folder / "page.html")])
    return folder / "page.html"


@pytest.mark.parametrize("make", [same, different, not_comparable, hostile, run])
def test_a_page_can_be_read_everywhere(see: Any, tmp_path: Path, make: Page) -> None:
    page = make(tmp_path)
    for view in see.everywhere(page, make.__name__):
        assert view.wrong() == []
    assert len(page.read_bytes()) < 500_000


@pytest.mark.parametrize("make", [different, hostile, run])
def test_the_narrowest_phone_needs_no_scrolling_sideways_and_an_opened_table_changes_nothing(
    see: Any, tmp_path: Path, make: Page
) -> None:
    see(make(tmp_path))
    see.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 320, "height": 640, "deviceScaleFactor": 1, "mobile": True},
    )
    wider = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert see.driver.execute_script(wider) <= 0
    opened = see.driver.execute_script(
        "const all = document.querySelectorAll('details'); all.forEach(one => one.open = true); return all.length"
    )
    assert opened > 0
    assert see.driver.execute_script(wider) <= 0


def test_nothing_on_a_page_runs_or_loads(see: Any, tmp_path: Path) -> None:
    see(hostile(tmp_path))
    assert see.driver.execute_script(
        "return [document.scripts.length, document.images.length, performance.getEntriesByType('resource').length]"
    ) == [0, 0, 0]
    tried = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); return window.ran || 0"
    assert see.driver.execute_script(tried) == 0


def test_a_printed_page_is_dark_on_white_and_leaves_nothing_out_but_folded_tables(
    see: Any, tmp_path: Path
) -> None:
    see(different(tmp_path), scheme="dark")
    see.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    colours = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    try:
        assert see.driver.execute_script(colours) == ["rgb(0, 0, 0)", "rgb(255, 255, 255)"]
        shown = "return [...document.querySelectorAll('svg.plot, h2, .verdict')].every(one => one.getBoundingClientRect().height > 0)"
        assert see.driver.execute_script(shown)
        pdf = base64.b64decode(
            see.driver.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})["data"]
        )
    finally:
        see.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
    assert pdf.startswith(b"%PDF")
    (see.shots / "different.pdf").write_bytes(pdf)
