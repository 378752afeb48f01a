"""What the tests of the text room share: a cache of their own, and being nobody in particular."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from ambidex.text import Tokens, prepare

# Machines that run tests are shared: a slow example is no failure. The cache fixture is keyed by content.
settings.register_profile("text", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.load_profile("text")

SETTINGS: dict[str, Any] = {
    "tokenizer": "byte",
    "vocabulary_size": 270,
    "field": "text",
    "validation_fraction": 0.1,
    "progress": False,
}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def tokens_of(cache: Path) -> Callable[..., Tokens]:
    """`prepare` of paths or words, with settings by keyword, into this test's cache."""

    def tokens_of(*data: Path | str, **settings: Any) -> Tokens:
        return prepare([str(one) for one in data], **SETTINGS | {"cache": cache} | settings)

    return tokens_of


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
        for path in Path(folder).rglob("*"):
            path.chmod(path.stat().st_mode | stat.S_IRWXU)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Permissions bind: root, whom they do not, becomes nobody for a while."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def as_nobody() -> Callable[[], Any]:
    return unprivileged
