"""Which Python is judged: its own name, its version, where its packages lie, and what installs into it.

This Python by default; with --python-env another one, named by its environment's folder or by its executable.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ambidex.device.ask import Answer, ask
from ambidex.device.paths import broken_link, is_file, is_folder, is_there, on_path, real, typed
from ambidex.errors import Problem, Problems

_PROGRAMS = ("bin/python", "bin/python3", "Scripts/python.exe", "python.exe")
_ASKED = "import json, sys; print(json.dumps([list(sys.version_info[:2]), sys.prefix, sys.path]))"


@dataclass(frozen=True)
class Environment:
    """One Python and its packages. ``executable`` is what to type for it, ``program`` what to start."""

    executable: str
    python: str  # "3.11"
    prefix: Path
    places: tuple[Path, ...]  # where packages are looked for, first wins
    own: bool = True  # whether it is the Python that runs now
    program: str = ""
    notes: tuple[str, ...] = ()


def this(
    *, path: Sequence[str] | None = None, executable: str = sys.executable, prefix: str = sys.prefix
) -> Environment:
    """The Python that runs now."""
    entries = sys.path if path is None else path
    places = tuple(Path(entry or ".") for entry in entries)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return Environment(_typed(executable), version, Path(prefix), places, program=executable)


def at(where: str | Path, *, put: Callable[..., Answer] = ask, seconds: float = 4.0) -> Environment:
    """Another environment: a venv or conda folder, a python executable, or a folder of packages.

    Its Python is asked for its path; where it cannot answer (another system's environment, a broken one), the
    folders on disk have to do, and ``notes`` say so. Raises `Problems` where nothing there looks like one.
    """
    path = typed(where)
    if not is_there(path):
        leads = broken_link(path)
        gone = f"it is a link to {leads}, which is not there" if leads else "there is nothing at that path"
        raise _no_environment(path, gone)
    program = path if is_file(path) else _program_of(path)
    if program is not None and len(program.parts) == 1:
        program = Path.cwd() / program  # a bare name would be looked for on PATH
    prefix = _prefix_of(path)
    note = ""
    if program is not None:
        answer = put([str(program), "-c", _ASKED], seconds=seconds)
        told = _told(answer.out)
        if told is not None and not answer.trouble:
            version, its_prefix, entries = told
            return Environment(
                str(program), version, Path(its_prefix), entries, own=False, program=str(program)
            )
        why = answer.trouble or "its answer was unreadable"
        note = f"{program} was not able to say where its packages lie ({why})"
    places = _places_on_disk(prefix)
    if not places:
        raise _no_environment(path, note or _dead_program(path) or "it holds no python and no site-packages")
    version = _version_on_disk(prefix, places)
    if program is None and places != (prefix,):
        note = f"{prefix} has no python here: the commands name the one that belongs there"
    name, started = str(program or _program_missing(prefix, places)), str(program or "")
    return Environment(
        name, version, prefix, places, own=False, program=started, notes=(note,) if note else ()
    )


def installer_of(environment: Environment, torch: Path | None, environ: Mapping[str, str]) -> str:
    """pip, uv, poetry or conda: what put torch there says its INSTALLER file; without torch, what the place
    looks like. A folder that has no Python of its own is pip's `target`, a Python into which pip may not install is
    the `system`'s, and a virtual environment without pip is `bare`.
    """
    found = _installer_of(environment, torch, environ)
    if found in ("pip", "uv") and _is_the_systems(environment):
        return "system"
    bare = found == "pip" and _pyvenv(environment.prefix) and not _holds(environment.places, "pip")
    return "bare" if bare else found


def _is_the_systems(environment: Environment) -> bool:
    """Whether the system keeps this Python to itself (PEP 668): there, pip refuses to install and to uninstall."""
    folders = (f"lib/python{environment.python}", f"lib64/python{environment.python}", "Lib")
    marked = any(is_file(environment.prefix / folder / "EXTERNALLY-MANAGED") for folder in folders)
    return marked and not _pyvenv(environment.prefix)


def _installer_of(environment: Environment, torch: Path | None, environ: Mapping[str, str]) -> str:
    if environment.places == (environment.prefix,) and not environment.program:
        return "target"
    wrote = _installer_file(torch)
    uv_made = "uv" in _pyvenv(environment.prefix)
    if wrote in ("uv", "conda"):
        return wrote
    if wrote.startswith("poetry"):
        return "poetry"
    if wrote == "pip" or torch is not None:
        # An environment that uv made has no pip of its own: a `python -m pip` there would not start.
        return "uv" if uv_made and not _holds(environment.places, "pip") else "pip"
    if "POETRY_ACTIVE" in environ:
        return "poetry"
    if uv_made:
        return "uv"
    return "pip"


def companions(environment: Environment, torch: Path | None) -> tuple[str, ...]:
    """torchvision and torchaudio where they are installed: they pin torch, and are reinstalled with it."""
    places = (*environment.places, *([torch.parent] if torch is not None else []))
    return tuple(name for name in ("torchvision", "torchaudio") if _holds(places, name))


def _typed(executable: str) -> str:
    """``python`` where that is this very Python, else the whole path."""
    found = on_path("python", os.environ.get("PATH"))
    if found and os.path.abspath(found) == os.path.abspath(executable):  # noqa: PTH100  links must stay unresolved
        return "python"
    return executable or "python"


def _no_environment(path: Path, found: str) -> Problems:
    return Problems(
        Problem(
            f"--python-env {path} is no Python environment",
            found=found,
            wanted="a venv or conda folder, a python executable, or a folder of packages",
        )
    )


def _program_of(folder: Path) -> Path | None:
    return next((folder / name for name in _PROGRAMS if is_file(folder / name)), None)


def _program_missing(prefix: Path, places: Iterable[Path]) -> Path:
    """The Python that would lie there, were it here: a folder of packages alone has none."""
    if prefix in places:
        return prefix
    windows = is_folder(prefix / "Scripts") or any(place.parts[-2] == "Lib" for place in places)
    return prefix / ("Scripts/python.exe" if windows else "bin/python")


def _dead_program(folder: Path) -> str:
    """What became of a venv whose Python was removed: its link leads nowhere."""
    dead = ((name, broken_link(folder / name)) for name in _PROGRAMS)
    return next((f"its {name} is a link to {leads}, which is not there" for name, leads in dead if leads), "")


def _prefix_of(path: Path) -> Path:
    """The environment of a program or a folder. A venv's python is a link: it is not followed."""
    if is_folder(path):
        return path
    return path.parent.parent if path.parent.name in ("bin", "Scripts") else path.parent


def _told(text: str) -> tuple[str, str, tuple[Path, ...]] | None:
    for line in text.splitlines():
        try:
            (major, minor), prefix, entries = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(entries, list) and isinstance(prefix, str):
            return f"{major}.{minor}", prefix, tuple(Path(str(entry)) for entry in entries if entry)
    return None


def _places_on_disk(prefix: Path) -> tuple[Path, ...]:
    patterns = (
        "lib/python3.*/site-packages",
        "lib64/python3.*/site-packages",
        "Lib/site-packages",
        "lib/site-packages",
        "lib/python3/dist-packages",
        "lib/python3.*/dist-packages",
    )
    found = [folder for pattern in patterns for folder in sorted(prefix.glob(pattern)) if is_folder(folder)]
    if not found and is_folder(prefix / "torch"):  # a folder of packages itself
        found = [prefix]
    unique: dict[Path, Path] = {}
    for folder in found:
        unique.setdefault(real(folder), folder)
    return tuple(unique.values())


def _version_on_disk(prefix: Path, places: Iterable[Path]) -> str:
    wrote = re.search(
        r"(\d+\.\d+)", _pyvenv(prefix).get("version_info", "") or _pyvenv(prefix).get("version", "")
    )
    if wrote:
        return wrote[1]
    for place in places:
        named = re.search(r"python(3\.\d+)", place.as_posix())
        if named:
            return named[1]
    for library in prefix.glob("python3*.dll"):
        named = re.fullmatch(r"python3(\d+)\.dll", library.name.lower())
        if named:
            return f"3.{named[1]}"
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


def _pyvenv(prefix: Path) -> dict[str, str]:
    try:
        text = (prefix / "pyvenv.cfg").read_text("utf-8", "replace")
    except (OSError, ValueError):
        return {}
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip().lower(): value.strip() for key, _, value in pairs}


def records(torch: Path) -> tuple[Path, ...]:
    """The installation records of the torch in this folder: of several those of the version that it has."""
    found = sorted(torch.parent.glob("torch-*.dist-info"))
    if len(found) < 2:
        return tuple(found)
    try:
        version = (torch / "version.py").read_text("utf-8", "replace")
    except (OSError, ValueError):
        return ()
    names = ((info, info.name.removeprefix("torch-").removesuffix(".dist-info")) for info in found)
    return tuple(
        info for info, name in names if re.search(rf"['\"]{re.escape(name)}(?:\+[\w.]+)?['\"]", version)
    )


def _installer_file(torch: Path | None) -> str:
    if torch is None:
        return ""
    for folder in records(torch):
        try:
            return (folder / "INSTALLER").read_text("utf-8", "replace").strip().lower()
        except (OSError, ValueError):
            continue
    return ""


def _holds(places: Iterable[Path], package: str) -> bool:
    return any(is_there(place / package / "__init__.py") or is_folder(place / package) for place in places)
