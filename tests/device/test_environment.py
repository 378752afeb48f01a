"""Another Python is judged by its folder or its executable, and torch by whoever installed it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ambidex.device import environment, installed
from ambidex.device.ask import Answer
from ambidex.errors import Problems

Install = Callable[..., Path]


def test_a_python_is_asked_for_its_own_path() -> None:
    found = environment.at(sys.executable)
    assert found.python == f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert any(place.name == "site-packages" for place in found.places)


def test_an_environment_whose_python_does_not_answer_is_read_from_disk(install: Install) -> None:
    folder = install()
    (folder / "bin").mkdir()
    program = folder / "bin/python"
    program.write_text("#!/bin/sh\nsleep 60\n")
    program.chmod(0o755)
    found = environment.at(program, seconds=0.3)
    assert installed.read(found).version == "2.5.1+cu121"
    assert "did not answer" in found.notes[0]


def test_an_answer_of_rubbish_is_not_believed(install: Install) -> None:
    folder = install()
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text("")

    def rubbish(command: Sequence[str], **_: object) -> Answer:
        return Answer('[[3], "x"]\n{"a": 1}\n[1, 2, 3]\n', "", 0)

    assert installed.read(environment.at(folder, put=rubbish)).version == "2.5.1+cu121"


def test_a_windows_environment_is_read_on_any_system(tmp_path: Path) -> None:
    (tmp_path / "Lib/site-packages/torch").mkdir(parents=True)
    (tmp_path / "Lib/site-packages/torch/version.py").write_text("__version__ = '2.9.1+cpu'\ncuda = None\n")
    (tmp_path / "python312.dll").write_bytes(b"")
    found = environment.at(tmp_path)
    assert installed.read(found).version == "2.9.1+cpu"
    assert found.python == "3.12"


def test_a_folder_of_packages_is_an_environment_too(install: Install) -> None:
    packages = install() / "lib/python3.11/site-packages"
    assert installed.read(environment.at(packages)).version == "2.5.1+cu121"


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_path_that_is_no_environment_exits_2(tmp_path: Path, name: str) -> None:
    with pytest.raises(Problems) as refused:
        environment.at(tmp_path / name)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("wrote", "tool"),
    [
        ("pip", "pip"),
        ("uv", "uv"),
        ("Poetry 1.8.3", "poetry"),
        ("conda", "conda"),
        ("", "pip"),
        ("\0rubbish", "pip"),
    ],
)
def test_the_installer_is_the_one_that_put_torch_there(install: Install, wrote: str, tool: str) -> None:
    found = environment.at(install(installer=wrote))
    assert environment.installer_of(found, installed.find(found), {}) == tool


def test_an_environment_of_uv_without_pip_is_given_commands_of_uv(install: Install) -> None:
    folder = install(installer="pip")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.13.9\nversion_info = 3.11.7\n")
    found = environment.at(folder)
    torch = installed.find(found)
    assert environment.installer_of(found, torch, {}) == "uv"
    (folder / "lib/python3.11/site-packages/pip").mkdir()
    assert environment.installer_of(found, torch, {}) == "pip"


def test_companions_are_those_that_are_installed(install: Install) -> None:
    folder = install()
    (folder / "lib/python3.11/site-packages/torchvision").mkdir()
    found = environment.at(folder)
    assert environment.companions(found, installed.find(found)) == ("torchvision",)


def test_a_python_marked_as_the_systems_own_is_not_pips(install: Install) -> None:
    folder = install()
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text("")
    (folder / "lib/python3.11/EXTERNALLY-MANAGED").write_text("[externally-managed]\n")
    found = environment.at(folder, put=lambda *_, **__: Answer("", "", 1, "no answer"))
    torch = installed.find(found)
    assert environment.installer_of(found, torch, {}) == "system"
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\n")
    assert environment.installer_of(found, torch, {}) == "bare", "a venv of such a Python is the user's own"


def test_a_venv_that_has_no_pip_is_told_from_one_that_has(install: Install) -> None:
    folder = install()
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text("")
    (folder / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.11.9\n")
    found = environment.at(folder, put=lambda *_, **__: Answer("", "", 1, "no answer"))
    assert environment.installer_of(found, installed.find(found), {}) == "bare"
    (folder / "lib/python3.11/site-packages/pip").mkdir()
    assert environment.installer_of(found, installed.find(found), {}) == "pip"


@pytest.mark.parametrize("version", ["2.5.1", "2.5.1+cu124"])
def test_of_two_records_the_one_of_the_torch_that_is_there_counts(tmp_path: Path, version: str) -> None:
    """PyPI's wheels have the tag in the version and not in the record's name."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/version.py").write_text(f"__version__ = '{version}'\n")
    for name in ("torch-2.4.0", "torch-2.5.1"):
        (tmp_path / f"{name}.dist-info").mkdir()
    assert environment.records(tmp_path / "torch") == (tmp_path / "torch-2.5.1.dist-info",)
