"""The place and the device of a behavioural test. On a GPU it bears the marker `gpu`, in an image `containers`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .place import IMAGE, Place

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if IMAGE and item.path.is_relative_to(HERE):
            item.add_marker("containers")


@pytest.fixture(scope="session")
def image() -> None:
    """The image is there. It is not built here: `docker compose build train-cpu` does, and so do the container tests."""
    sys.path.insert(0, str(HERE.parents[1] / "docker"))
    import check

    if wrong := check.engine_problems():
        pytest.fail(wrong[0], pytrace=False)
    if subprocess.run(["docker", "image", "inspect", IMAGE], capture_output=True, check=False).returncode:
        pytest.fail(
            f"AMBIDEX_IMAGE names {IMAGE}, and there is no such image: python3 docker/build.py cpu",
            pytrace=False,
        )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(device: str, story: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    """A folder with a text in it, `story.txt`, and Ambidex to be asked from there."""
    if IMAGE:
        request.getfixturevalue("image")
    (tmp_path / "story.txt").write_bytes(story.read_bytes())
    made = Place(tmp_path, gpu=device == "cuda")
    yield made
    made.close()
