"""Questions about files that are answered whatever the system says: a folder that may not be read holds nothing.

`pathlib` raises for some of what goes wrong (no permission, a NUL in the name, links in a circle), and the
doctor looks into places that others left behind.
"""

# ruff: noqa: PTH110, PTH112, PTH114, PTH115, PTH113, PTH111  os.path is the half of the library that does not raise
from __future__ import annotations

import os
from pathlib import Path


def is_there(path: Path) -> bool:
    return os.path.exists(path)


def is_file(path: Path) -> bool:
    return os.path.isfile(path)


def is_folder(path: Path) -> bool:
    return os.path.isdir(path)


def real(path: Path) -> Path:
    """Links followed as far as they lead."""
    return Path(os.path.realpath(path))


def typed(text: str | Path) -> Path:
    """A path as somebody typed it, with ``~`` put in place where a home is known."""
    return Path(os.path.expanduser(text))


def on_path(name: str, path: str | None) -> str:
    """Where `name` lies on a PATH, '' where it does not. `shutil.which` costs five modules to load."""
    if os.name == "nt":
        import shutil

        return shutil.which(name, path=path) or ""
    folders = [""] if os.sep in name else (os.defpath if path is None else path).split(os.pathsep)
    places = (os.path.join(folder, name) for folder in folders)  # noqa: PTH118
    return next((place for place in places if os.path.isfile(place) and os.access(place, os.X_OK)), "")


def broken_link(path: Path) -> str:
    """Where a link leads that leads to nothing, '' for everything else."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return os.readlink(path)
