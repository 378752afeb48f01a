"""An engine, or the sentence that says what to type; the CPU image, built once; a project of the test's own."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs_commands import documented

from .engine import ROOT, Project, docker, good

sys.path.insert(0, str(ROOT / "docker"))  # the scripts of the images are no package


@pytest.fixture(scope="session")
def engine() -> None:
    """Where there is no engine, the tests that need one say so; in CI that is a failure."""
    import check

    wrong = [*check.problems()[:1]] if check.shutil.which("docker") is None else [
        *check.engine_problems(), *check.builder_problems(), *check.compose_problems()
    ]  # fmt: skip
    if wrong and os.environ.get("REQUIRE_ENGINE") == "1":
        pytest.fail("\n".join(wrong), pytrace=False)
    if wrong:
        pytest.skip(wrong[0])


@pytest.fixture(scope="session")
def cpu_image(engine: None) -> str:
    """The CPU image with the source as it is now, labels and all. Without a network: docker/wheels has to hold it."""
    words = shlex.split(documented("python3 docker/build.py cpu --offline"))[1:]
    if not any((ROOT / "docker/wheels").glob("torch-*.whl")):
        words.remove("--offline")
    import subprocess

    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT, env={**os.environ, "CA_FILE": os.environ.get("CA_FILE", "")}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return "ambidex:cpu"


@pytest.fixture
def project(cpu_image: str, tmp_path: Path) -> Iterator[Project]:
    """compose.yaml with runs and data of its own; whatever the test leaves running is stopped."""
    made = Project(tmp_path)
    made.runs.mkdir()
    made.data.mkdir()
    lines = (f"Line {number} of a book that counts: {number * number}.\n" for number in range(2500))
    (made.data / "book.txt").write_text("".join(lines), "utf-8")
    yield made
    made.close()


@pytest.fixture
def leftovers(engine: None) -> Iterator[list[str]]:
    """Names of images and containers to remove after the test."""
    names: list[str] = []
    yield names
    for name in names:
        docker("rm", "--force", "--volumes", name)
        docker("image", "rm", "--force", name)


def free(image: str) -> None:
    good(docker("image", "rm", "--force", image))
