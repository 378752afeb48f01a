"""How to type an installation: for pip, uv, poetry or conda, and so that it cannot be a no-op.

With 2.13.0+cpu installed, `pip install torch==2.13.0` says "Requirement already satisfied" and changes
nothing, and so does uv. Hence the old one is uninstalled first and the local version is pinned. Companions
pin torch themselves, so they are reinstalled in the same command, unpinned.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from ambidex.device.machine import Gpu, Machine


def reinstall(machine: Machine, requirement: str, index: str) -> tuple[str, ...]:
    """Commands that put `requirement` ("torch==2.11.0+cu128") and the companions in place of what is there.

    An empty `index` means PyPI. Where no torch is installed nothing is uninstalled.
    """
    there = machine.build.version is not None or bool(machine.build.broken)
    packages = ("torch", *machine.companions)
    if machine.installer == "poetry":
        return _poetry(requirement, packages, index, there)
    if machine.installer == "conda":
        # conda's channels are in no table: its own torch goes, the wheel comes into the same environment.
        removed = (
            (f"conda remove --yes pytorch{''.join(f' {name}' for name in machine.companions)}",)
            if there
            else ()
        )
        return (*removed, _install(f"{_program(machine)} -m pip install", requirement, packages, index))
    remove, install = _pip_words(machine)
    removed = (f"{remove} {' '.join(packages)}",) if there else ()
    return (*removed, _install(install, requirement, packages, index))


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
    return (
        f"{maker} -m venv .venv-torch",
        _install(f"{_venv(machine.os)} -m pip install", requirement, packages, index),
    )


def renew(machine: Machine, package: str) -> str:
    """The command that fetches or builds one package anew, torch left alone."""
    if machine.installer == "poetry":
        return (
            f"poetry run python -m pip install --upgrade --force-reinstall --no-deps --no-cache-dir {package}"
        )
    if machine.installer == "uv":
        return f"{_pip_words(machine)[1]} --upgrade --reinstall --no-deps --no-cache {package}"
    return (
        f"{_program(machine)} -m pip install --upgrade --force-reinstall --no-deps --no-cache-dir {package}"
    )


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
    settings = {**order, "CUDA_VISIBLE_DEVICES": shown}
    if os == "windows":
        return "; ".join(f'$env:{name} = "{value}"' for name, value in settings.items())
    return "export " + " ".join(f"{name}={value}" for name, value in settings.items())


def _pip_words(machine: Machine) -> tuple[str, str]:
    program = _program(machine)
    if machine.installer == "uv":
        where = "" if program == "python" else f" --python {program}"
        return f"uv pip uninstall{where}", f"uv pip install{where}"
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
    if machine.os == "windows":
        spaced = " " in machine.executable
        return f'"{machine.executable}"' if spaced else machine.executable
    return shlex.quote(machine.executable)
