"""How to type an installation: for pip, uv, poetry or conda, and so that it cannot be a no-op.

With 2.13.0+cpu installed, `pip install torch==2.13.0` says "Requirement already satisfied" and changes
nothing, and so does uv. Hence the old one is uninstalled first and the local version is pinned. Companions
pin torch themselves, so they are reinstalled in the same command, unpinned.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath, PureWindowsPath

from ambidex.device.machine import Gpu, Machine

# What the build of a package with GPU code imports besides torch: flash_attn's does, and declares none of it.
_BUILD_TOOLS = "setuptools wheel packaging ninja psutil"


def in_a_terminal(commands: Sequence[str], os: str) -> str:
    """As they are typed, one after the other. On Windows each on its own line: Windows PowerShell 5.1 knows no `&&`."""
    return "$ " + ("\n$ " if os == "windows" else " && ").join(commands) if commands else ""


def reinstall(machine: Machine, requirement: str, index: str) -> tuple[str, ...]:
    """Commands that put `requirement` ("torch==2.11.0+cu128") and the companions in place of what is there.

    An empty `index` means PyPI. Where no torch is installed nothing is uninstalled.
    """
    there = machine.build.version is not None or bool(machine.build.broken)
    packages = ("torch", *machine.companions)
    if machine.installer == "system":
        return _in_a_venv(machine, _started(machine), requirement, packages, index)
    if machine.installer == "target":
        return (_install(_into_folder(machine), requirement, packages, index),)
    if machine.installer == "poetry":
        return _poetry(requirement, packages, index, there)
    if machine.installer == "conda":
        # conda's channels are in no table: its own torch goes, the wheel comes into the same environment.
        removed = (
            (f"conda remove --yes{_prefix(machine)} {' '.join(('pytorch', *machine.companions))}",)
            if there
            else ()
        )
        return (*removed, _install(f"{_started(machine)} -m pip install", requirement, packages, index))
    remove, install = _pip_words(machine)
    made = (f"{_started(machine)} -m ensurepip --upgrade",) if machine.installer == "bare" else ()
    removed = (f"{remove} {' '.join(packages)}",) if there else ()
    return (*made, *removed, _install(install, requirement, packages, index))


def elsewhere(machine: Machine, python: str, requirement: str, index: str) -> tuple[str, ...]:
    """The same in a new environment with another Python, since a wheel exists for some Pythons only."""
    packages = ("torch", *machine.companions)
    if machine.installer == "poetry":
        return (f"poetry env use {python}", *_poetry(requirement, packages, index, there=False))
    if machine.installer == "conda":
        made = f"conda create --yes --name torch python={python} pip"
        return (made, _install("conda run --name torch python -m pip install", requirement, packages, index))
    if machine.installer == "uv":
        made = f"uv venv --python {python} .venv-torch"
        return (made, _install(f"uv pip install --python {_venv(machine.os)}", requirement, packages, index))
    maker = f"py -{python}" if machine.os == "windows" else f"python{python}"
    return _in_a_venv(machine, maker, requirement, packages, index)


def _in_a_venv(
    machine: Machine, maker: str, requirement: str, packages: Sequence[str], index: str
) -> tuple[str, ...]:
    return (
        f"{maker} -m venv .venv-torch",
        _install(f"{_venv(machine.os)} -m pip install", requirement, packages, index),
    )


def renew(machine: Machine, package: str) -> tuple[str, ...]:
    """Commands that fetch or build one package anew, torch left alone.

    Where there is no wheel it is built, and its setup.py imports the torch that it is built for: so without
    pip's isolation, in which there is none, and after what such builds import besides.
    """
    anew = f"--no-deps --no-cache-dir --no-build-isolation {package}"
    if machine.installer == "uv":
        words = _pip_words(machine)[1]
        anew = f"--upgrade --reinstall --no-deps --no-cache --no-build-isolation {package}"
        return (f"{words} {_BUILD_TOOLS}", f"{words} {anew}")
    if machine.installer == "target":
        words = f"{_builder(machine)} -m pip install"
        return (
            f"{words} --target {_program(machine)} {_BUILD_TOOLS}",
            f"{_seeing_folder(machine)}{words} --upgrade --target {_program(machine)} {anew}",
        )
    program = "poetry run python" if machine.installer == "poetry" else _started(machine)
    words = f"{program} -m pip install"
    if machine.installer == "system":  # what is to be renewed was put there against the system's advice
        words += " --break-system-packages"
    if machine.installer == "bare":
        made = f"{program} -m ensurepip --upgrade"
        return (made, f"{words} {_BUILD_TOOLS}", f"{words} --upgrade --force-reinstall {anew}")
    return (f"{words} {_BUILD_TOOLS}", f"{words} --upgrade --force-reinstall {anew}")


def build_settings(package: str, capabilities: Iterable[tuple[int, int]], os: str = "linux") -> str:
    """What to type so that the package's own build makes code for these GPUs; empty where it can make none.

    flash_attn's setup.py gives nvcc its own list, after which torch passes over TORCH_CUDA_ARCH_LIST; it
    knows one number a major version, from 8.0 on, and fetches a wheel made elsewhere unless forced.
    """
    wanted = list(dict.fromkeys(capabilities))
    if package.replace("-", "_") == "flash_attn":
        listed = ";".join(dict.fromkeys(f"{major}0" for major, _ in wanted if major >= 8))
        settings = {"FLASH_ATTENTION_FORCE_BUILD": "TRUE", "FLASH_ATTN_CUDA_ARCHS": listed}
        if not listed:
            return ""
    else:
        settings = {"TORCH_CUDA_ARCH_LIST": ";".join(f"{major}.{minor}" for major, minor in wanted)}
    if os != "windows":  # where a semicolon ends a command
        settings = {name: f'"{value}"' for name, value in settings.items()}
    return _set(settings, os)


def unset(variables: Sequence[str], os: str) -> str:
    """Takes variables out of the environment, in a POSIX shell or in PowerShell."""
    if os == "windows":
        return "Remove-Item " + ", ".join(f"Env:{name}" for name in variables)
    return "unset " + " ".join(variables)


def show_only(gpus: Sequence[Gpu], os: str) -> str:
    """Shows CUDA these GPUs alone: by UUID, since CUDA's numbering is not nvidia-smi's, else by PCI order."""
    by_uuid = all(gpu.uuid for gpu in gpus)
    order = {} if by_uuid else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    shown = ",".join(gpu.uuid if by_uuid else str(gpu.index) for gpu in gpus)
    return _set({**order, "CUDA_VISIBLE_DEVICES": shown}, os)


def _set(variables: Mapping[str, str], os: str) -> str:
    """Puts variables into the environment, in a POSIX shell or in PowerShell."""
    if os == "windows":
        return "; ".join(f'$env:{name} = "{value}"' for name, value in variables.items())
    return "export " + " ".join(f"{name}={value}" for name, value in variables.items())


def _into_folder(machine: Machine) -> str:
    """Into a folder of packages with no Python beside it: pip replaces what lies there, so it is no no-op."""
    return (
        f"python -m pip install --upgrade --target {_program(machine)} "
        f"--python-version {machine.python} --only-binary=:all:"
    )


def _builder(machine: Machine) -> str:
    """A Python of the folder's version, which has none of its own: what is built suits the one that builds."""
    return f"py -{machine.python}" if machine.os == "windows" else f"python{machine.python}"


def _seeing_folder(machine: Machine) -> str:
    """Shows that Python the folder's torch, by its whole path, since a build runs in a place of its own."""
    folder = machine.executable
    if machine.os == "windows":
        whole = folder if PureWindowsPath(folder).is_absolute() else rf"$PWD\{folder}"
        return f'$env:PYTHONPATH = "{whole}"; '
    whole = "" if PurePosixPath(folder).is_absolute() else '"$PWD"/'
    return f"PYTHONPATH={whole}{_program(machine)} "


def _prefix(machine: Machine) -> str:
    """Which environment conda is to change: without it, whichever is active."""
    windows = machine.os == "windows"
    program = (PureWindowsPath if windows else PurePosixPath)(machine.executable)
    if len(program.parts) == 1:
        return ""  # this very Python, which is on PATH: the active environment's
    folder = program.parent
    folder = folder.parent if folder.name in ("bin", "Scripts") else folder
    return f" --prefix {_quoted(str(folder), machine.os)}"


def _pip_words(machine: Machine) -> tuple[str, str]:
    program = _program(machine)
    if machine.installer == "uv":
        where = "" if program == "python" else f" --python {program}"
        return f"uv pip uninstall{where}", f"uv pip install{where}"
    program = _started(machine)
    return f"{program} -m pip uninstall -y", f"{program} -m pip install"


def _install(words: str, requirement: str, packages: Sequence[str], index: str) -> str:
    companions = "".join(f" {name}" for name in packages[1:])
    return f'{words} "{requirement}"{companions}' + (f" --index-url {index}" if index else "")


def _poetry(requirement: str, packages: Sequence[str], index: str, there: bool) -> tuple[str, ...]:
    source = "pytorch-" + index.rsplit("/", 1)[-1]
    add = f"poetry add --source {source}" if index else "poetry add"
    sourced = (f"poetry source add --priority explicit {source} {index}",) if index else ()
    removed = (f"poetry remove {' '.join(packages)}",) if there else ()
    return (*sourced, *removed, _install(add, requirement, packages, ""))


def _venv(os: str) -> str:
    return r".venv-torch\Scripts\python" if os == "windows" else ".venv-torch/bin/python"


def _program(machine: Machine) -> str:
    """The Python, or the folder, as an argument of another program."""
    return _quoted(machine.executable, machine.os)


def _started(machine: Machine) -> str:
    """The Python as the first word of a line: PowerShell takes a quoted one for a text, unless it is called by `&`."""
    program = _program(machine)
    return f"& {program}" if machine.os == "windows" and program[0] in "\"'" else program


def _quoted(path: str, os: str) -> str:
    if os != "windows":
        return shlex.quote(path)
    if re.fullmatch(r"[\w:\\/.~+-]+", path):
        return path
    if "$" in path or "`" in path:  # which PowerShell obeys within double quotes
        return "'" + path.replace("'", "''") + "'"
    return f'"{path}"'
