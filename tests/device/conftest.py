"""An environment with a torch in it, put together on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from built_machines import A_LIST, elf


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Writes a fake environment with a torch in it, and returns the environment's folder."""

    def write(
        version: str | None = "2.5.1+cu121",
        cuda: str | None = "12.1",
        listed: str = A_LIST,
        *,
        at: str = "env",
        library: bytes | None = None,
        hip: str | None = None,
        installer: str = "pip",
    ) -> Path:
        site = tmp_path / at / "lib/python3.11/site-packages"
        torch = site / "torch"
        (torch / "lib").mkdir(parents=True)
        (torch / "__init__.py").write_text("")
        if version is not None:
            (torch / "version.py").write_text(
                "from typing import Optional\n\n"
                f"__version__ = {version!r}\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
                f"git_version = 'abc'\nhip: Optional[str] = {hip!r}\n"
            )
        content = elf(listed.encode() if cuda else b"") if library is None else library
        (torch / "lib/libtorch_python.so").write_bytes(content)
        info = site / "torch-2.5.1+cu121.dist-info"
        info.mkdir()
        (info / "INSTALLER").write_text(installer + "\n")
        return tmp_path / at

    return write
