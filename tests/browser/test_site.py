"""The site builds without a warning, and its pages can be read: light and dark, on a phone and on a desktop."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(path.stem for path in (ROOT / "docs").glob("*.md"))
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: tox run -e docs"
)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


def test_every_page_is_built_and_in_the_navigation(site):
    home = (site / "index.html").read_text("utf-8")
    for page in PAGES:
        assert (site / f"{page}.html").exists()
        assert f'href="{page}.html"' in home or page == "index"


def test_nothing_is_fetched_from_elsewhere(site):
    loads = re.compile(r"""(?:src=|<link[^>]+href=|@import |url\()["']?(https?:)?//""")
    for path in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = loads.search(path.read_text("utf-8"))
        assert found is None, f"{path.name}: {found}"


def test_the_picture_of_the_rooms_is_drawn_and_says_what_it_shows(site):
    page = (site / "architecture.html").read_text("utf-8")
    assert '<svg class="rooms" role="img" aria-label="The rooms, from top to bottom: cli.py' in page
    assert "mermaid" not in page


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_nothing_wrong_in_any_view(site, see, served_site, page):
    wrong = [line for view in see.everywhere(f"{served_site}/{page}.html", page) for line in view.wrong()]
    assert wrong == []


@pytest.fixture(scope="session")
def served_site(site, served) -> str:
    return served(site)
