"""Pages seen in headless Chromium: console, accessibility, width and a screenshot, light and dark, phone and desktop.

A test asks for `see` and gives it a file or an address::

    def test_the_page_can_be_read_everywhere(see, tmp_path):
        for view in see.everywhere(tmp_path / "page.html"):
            assert view.wrong() == []

Nothing but this machine is reachable from the browser, so whatever a page fetches from elsewhere is an error on its
console. Where Chromium, its driver, selenium or axe-core is missing the tests are skipped with the reason; they fail
where REQUIRE_BROWSER=1. Screenshots go to the folder that SCREENSHOTS names, else under pytest's own temporary folder.
"""

from __future__ import annotations

import base64
import functools
import http.server
import importlib.util
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SIZES = {"phone": (390, 844), "desktop": (1366, 900)}  # CSS pixels
SCHEMES = ("light", "dark")
# Every rule that axe-core turns on by default: WCAG 2 A and AA, and its best practices.
_AXE = "const done = arguments[arguments.length - 1]; axe.run(document).then(found => done(found.violations), error => done([{id: String(error), nodes: []}]));"
_WIDER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@dataclass(frozen=True)
class View:
    """One page at one size in one colour scheme."""

    name: str
    scheme: str
    size: str
    console: tuple[str, ...]  # errors and warnings
    violations: tuple[str, ...]  # of axe-core's rules, with the elements
    wider: int  # CSS pixels by which the page is wider than the window
    screenshot: Path

    def wrong(self) -> list[str]:
        """All that a person would complain about, in sentences."""
        where = f"{self.name}, {self.scheme}, {self.size}"
        found = [f"{where}: console: {line}" for line in self.console]
        found += [f"{where}: axe: {line}" for line in self.violations]
        if self.wider > 0:
            found.append(f"{where}: {self.wider} pixels wider than the window")
        return found


class Eyes:
    """A browser that looks at pages."""

    def __init__(self, driver: Any, axe: str, shots: Path) -> None:
        self.driver, self.axe, self.shots = driver, axe, shots

    def everywhere(self, page: Path | str, name: str = "") -> Iterator[View]:
        """The page in both schemes at both widths."""
        for scheme in SCHEMES:
            for size in SIZES:
                yield self(page, scheme, size, name)

    def __call__(
        self, page: Path | str, scheme: str = "light", size: str = "desktop", name: str = ""
    ) -> View:
        """Open a file or an address and look at it. A test may go on with ``driver`` afterwards."""
        address = page.resolve().as_uri() if isinstance(page, Path) else page
        name = name or (page.stem if isinstance(page, Path) else "page")
        driver, (width, height) = self.driver, SIZES[size]
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
            "features": [{"name": "prefers-color-scheme", "value": scheme},
                         {"name": "prefers-reduced-motion", "value": "reduce"}],
        })  # fmt: skip
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone",
        })  # fmt: skip
        driver.get_log("browser")  # what an earlier page left
        driver.get(address)
        console = [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")
                   if entry["level"] in ("SEVERE", "WARNING")]  # fmt: skip
        wider = int(driver.execute_script(_WIDER))
        driver.execute_script(self.axe)
        violations = driver.execute_async_script(_AXE)
        shot = self.shots / f"{name}-{scheme}-{size}.png"
        whole = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
        shot.write_bytes(base64.b64decode(whole["data"]))
        return View(name, scheme, size, tuple(console), tuple(map(_violation, violations)), wider, shot)


def _violation(found: dict[str, Any]) -> str:
    places = "; ".join(f"{node['target']}: {' '.join(str(node.get('failureSummary', '')).split())}"
                       for node in found["nodes"][:3])  # fmt: skip
    return f"{found['id']} in {len(found['nodes'])} places: {places}"


def _axe_source() -> str | None:
    """axe-core's script: the file that AXE_CORE names, or the copy in an installed package."""
    given = os.environ.get("AXE_CORE")
    places = [Path(given)] if given else []
    for package in ("axe_playwright_python", "axe_core_python"):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            places.append(Path(spec.submodule_search_locations[0], "axe.min.js"))
    found = next((place for place in places if place.is_file()), None)
    return found.read_text("utf-8") if found else None


def _missing() -> str:
    """What is not there, in one sentence, or nothing."""
    lacking = [
        words
        for there, words in (
            (importlib.util.find_spec("selenium"), "selenium"),
            (_browser(), "Chromium"),
            (shutil.which("chromedriver"), "chromedriver (Debian: chromium-driver)"),
            (_axe_source(), "axe-core (axe-playwright-python, or AXE_CORE with the path of axe.min.js)"),
        )
        if not there
    ]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def _browser() -> str | None:
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def see(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Eyes]:
    """`Eyes`: one browser for all pages of a worker."""
    if lacking := _missing():
        if os.environ.get("REQUIRE_BROWSER") == "1":
            pytest.fail(lacking)
        pytest.skip(lacking)
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = _browser() or ""
    for argument in (
        "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
        "--disable-extensions", "--disable-background-networking", "--force-color-profile=srgb",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):  # fmt: skip
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses root, as which CI's containers run
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver") or ""))
    driver.set_script_timeout(60)
    driver.set_page_load_timeout(60)
    shots = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    shots.mkdir(parents=True, exist_ok=True)
    try:
        yield Eyes(driver, _axe_source() or "", shots)
    finally:
        with suppress(Exception):
            driver.quit()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        """Nothing: pytest shows what matters."""


@pytest.fixture(scope="session")
def served() -> Iterator[Callable[[Path], str]]:
    """Serve a folder on this machine: ``served(folder)`` is its address, without the last slash."""
    servers: list[http.server.ThreadingHTTPServer] = []

    def serve(folder: Path) -> str:
        handler = functools.partial(_Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()
