"""A machine from what was typed: `--torch 2.5.1+cu121 --gpu "RTX 5060" --driver 576.02`.

Everything that cannot be understood is said at once, with what was read and what is accepted.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ambidex.device import builds, gpus, variants
from ambidex.device.gpus import Known
from ambidex.device.machine import Build, Container, Driver, Gpu, Machine
from ambidex.device.version import TorchVersion, cuda_of_tag, numbers
from ambidex.errors import Problem, Problems, did_you_mean

_T = TypeVar("_T")
_OS = {
    "linux": "linux",
    "ubuntu": "linux",
    "debian": "linux",
    "wsl": "linux",
    "wsl2": "linux",
    "windows": "windows",
    "win": "windows",
    "win32": "windows",
    "win64": "windows",
    "macos": "macos",
    "mac": "macos",
    "darwin": "macos",
    "osx": "macos",
}
_MACHINE = {
    "x86_64": "x86_64",
    "x86-64": "x86_64",
    "amd64": "x86_64",
    "x64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
}
# The tag, and what some wheels put after it: the same code, packed otherwise.
_LOCAL = re.compile(r"(cpu|xpu|cu\d{2,3}|rocm\d+(?:\.\d+)*)(?:\.cxx11\.abi|\.with\.pypi\.cudnn|[._-]full)?")
_LOCAL_WORDS = "cpu, cu118 to cu132, rocm6.4, xpu"


def machine_from(
    *,
    torch: str | None = None,
    gpu: str | None = None,
    driver: str | None = None,
    python: str | None = None,
    os: str | None = None,
    machine: str | None = None,
    here: Machine | None = None,
) -> Machine:
    """The supposed machine. What is not given is linux, x86_64, this Python, a driver new enough for the GPU.

    torch, GPUs and Python that are not given are taken from `here` where it is given. Several
    GPUs are separated by commas. A GPU that exists in Arm computers alone makes the machine one where
    `machine` is not given; in WSL the driver is Windows' own. Raises Problems (exit 2) with all that was not
    understood.
    """
    problems: list[Problem] = []

    def read(parse: Callable[[str], _T], text: str | None, otherwise: _T) -> _T:
        try:
            return otherwise if text is None else parse(text)
        except Problems as found:
            problems.extend(found.problems)
            return otherwise

    version = read(_torch, torch, None)
    nothing: list[Known] = []
    known = read(_gpus, gpu, nothing)
    supposed = Machine(
        os=read(_os, os, "linux"),
        machine=read(_machine, machine, "x86_64"),
        python=read(_python, python, here.python if here else f"{sys.version_info[0]}.{sys.version_info[1]}"),
        driver=Driver(read(_driver, driver, None)),
    )
    if problems:
        raise Problems(problems)
    if machine is None and _on_arm_alone(supposed, known):
        supposed = replace(supposed, machine="aarch64")
    if os is not None and _word(os).startswith("wsl"):
        supposed = replace(supposed, container=Container("wsl", True, "the driver is Windows' own"))
    if here is not None:
        kept = (here.build, here.installer, here.executable, here.companions)
        supposed = replace(
            supposed, build=kept[0], installer=kept[1], executable=kept[2], companions=kept[3], gpus=here.gpus
        )
    else:
        supposed = replace(supposed, build=Build(missing="No torch is supposed: name one with --torch."))
    if version is not None:
        supposed = replace(supposed, build=_build(version, supposed), companions=())
    if known:
        listed = tuple(Gpu(found.name, found.cc, index) for index, found in enumerate(known))
        supposed = replace(supposed, gpus=listed)
    return supposed


def taken_for_granted(
    supposed: Machine, *, os: str | None, machine: str | None, python: str | None
) -> tuple[str, ...]:
    """What of the supposed computer was not said, in words, with the flag that would say it."""
    unsaid = [
        f"{value} ({flag})"
        for flag, word, value in (
            ("--os", os, supposed.os),
            ("--machine", machine, supposed.machine),
            ("--python", python, f"Python {supposed.python}"),
        )
        if word is None
    ]
    return (f"taken for granted: {', '.join(unsaid)}",) if unsaid else ()


def not_installable(machine: Machine) -> tuple[str, ...]:
    """Where the supposed torch has no wheels for the supposed Python, that in words."""
    version = machine.build.version or ""
    asked = TorchVersion.parse(version)
    span = builds.pythons_of(version)
    if asked is None or not span or span[0] <= numbers(machine.python)[:2] <= span[1]:
        return ()
    first, last = (".".join(map(str, end)) for end in span)
    return (f"torch {asked.base} has no wheels for Python {machine.python}, only for {first} to {last}",)


def not_driven(machine: Machine) -> tuple[str, ...]:
    """Where the supposed driver is too new for a supposed GPU, that in words: such a machine lists no such GPU."""
    said = []
    for gpu in machine.gpus:
        last = builds.last_driver(gpu.cc)
        if last and builds.is_of_a_later_branch(machine.driver, last):
            said.append(
                f"driver {machine.driver.version} no longer drives the {gpu.name}: {last} is its last branch"
            )
    return tuple(dict.fromkeys(said))


def _on_arm_alone(machine: Machine, known: list[Known]) -> bool:
    """Whether every GPU exists in Arm computers alone: what the table has for others is nothing to them."""
    return machine.os == "linux" and bool(known) and all(gpu.machine == "aarch64" for gpu in known)


def _build(version: TorchVersion, machine: Machine) -> Build:
    """The table's build of this version there; `archs` is None where the table has none."""
    local = version.local or builds.pypi_tag(str(version), machine.os, machine.machine) or ""
    text = str(replace(version, local=local))
    if local in ("cpu", "xpu") or machine.os == "macos":
        return Build(text, archs=(), source="table", python=machine.python)
    if local.startswith("rocm"):
        return Build(text, hip=local.removeprefix("rocm"), archs=(), source="table", python=machine.python)
    archs = builds.archs(text, machine.os, machine.machine)
    source = "unknown" if archs is None else "table"
    return Build(text, cuda_of_tag(local), archs=archs, source=source, python=machine.python)  # type: ignore[arg-type]


def _torch(text: str) -> TorchVersion:
    """A version, or the name of a variant that pins one: "cu121" is 2.5.1+cu121."""
    row = variants.rows().get(text.strip().lower(), {})
    spelled = f"{row['torch']}+{row['local']}" if "torch" in row else text
    found = TorchVersion.parse(_plain(spelled))
    examples = "2.5.1+cu121, 2.13.0+cpu, 2.5.1 (what PyPI serves) or 2.7.0.dev20250310+cu124"
    if found is None:
        raise Problems(
            Problem(
                f"--torch {text!r} is no version of torch.", _read_as(text), examples, _near_version(text)
            )
        )
    vendor = found.pre and "." in found.local  # NGC's own: 2.6.0a0+df5bbc09d1.nv24.11
    known = _LOCAL.fullmatch(found.local)
    if known:
        return replace(found, local=known[1])
    if found.local and not vendor and not found.pre:
        tags = [*builds.tags_of(found.base, "linux", "x86_64"), "cpu"]
        near = f"torch {found.base} is on the indexes {', '.join(tags)}" if len(tags) > 1 else ""
        raise Problems(
            Problem(
                f"--torch {text!r}: {found.local!r} is no variant of torch.",
                f"torch {found.base}, variant {found.local!r}",
                f"one of {_LOCAL_WORDS}",
                near,
            )
        )
    return found


def _plain(text: str) -> str:
    return text.strip().removeprefix("torch").lstrip("= ")


def _near_version(text: str) -> str:
    """``2.5.1-cu121`` is near 2.5.1+cu121; "2.5.l" is near 2.5.1."""
    number, tag = re.match(r"([\d.]*)[\W_]*((?:cu|cpu|rocm|xpu)[\w.]*)?", _plain(text.lower())).groups()  # type: ignore[union-attr]
    if tag and TorchVersion.parse(f"{number}+{tag}"):
        return f"did you mean {f'{number}+{tag}'!r}?"
    return did_you_mean(_plain(text).partition("+")[0], builds.table()["versions"]["list"])


def _gpus(text: str) -> list[Known]:
    problems: list[Problem] = []
    found = []
    for part in text.split(","):
        try:
            found.append(gpus.find(part.strip()))
        except Problems as wrong:
            problems.extend(wrong.problems)
    if problems:
        raise Problems(problems)
    return found


def _driver(text: str) -> str:
    stripped = text.strip().lower().removeprefix("r").removeprefix("v")
    in_windows = re.fullmatch(
        r"\d{2}\.0\.\d{2}\.?(\d{4,5})", stripped
    )  # 32.0.15.7602, the device manager's way
    if in_windows:
        digits = re.sub(r"\D", "", stripped)[-5:]
        return f"{digits[:3]}.{digits[3:]}"
    if re.fullmatch(r"[3-9]\d{2}(\.\d{1,3}){0,2}(\.xx)?", stripped):
        return stripped.removesuffix(".xx")
    reads_as_cuda = re.fullmatch(r"(cuda *)?1[0-9]\.\d", stripped)
    raise Problems(
        Problem(
            f"--driver {text!r} is no version of an NVIDIA driver.",
            "a CUDA version, by its looks" if reads_as_cuda else _read_as(text),
            "the driver's own version as nvidia-smi prints it, such as 576.02, 580 or 570.124.06",
        )
    )


def _python(text: str) -> str:
    found = re.fullmatch(r"(?:python|py|cp)? ?3\.?(\d{1,2})(?:\.\d+)?t?", text.strip().lower())
    if not found:
        raise Problems(Problem(f"--python {text!r} is no Python 3.", _read_as(text), "such as 3.11 or 3.13"))
    return f"3.{int(found[1])}"


def _word(text: str) -> str:
    words: list[str] = re.findall(r"[a-z]+\d*", text.strip().lower())
    return words[0] if words else ""


def _os(text: str) -> str:
    word = _word(text)
    if word in _OS:
        return _OS[word]
    raise Problems(
        Problem(
            f"--os {text!r} is not known.",
            _read_as(text),
            "linux, windows or wsl",
            did_you_mean(word, list(_OS)),
        )
    )


def _machine(text: str) -> str:
    word = text.strip().lower()
    if word in _MACHINE:
        return _MACHINE[word]
    near = did_you_mean(word, list(_MACHINE))
    raise Problems(Problem(f"--machine {text!r} is not known.", _read_as(text), "x86_64 or aarch64", near))


def _read_as(text: str) -> str:
    digits = ".".join(map(str, numbers(text)))
    return f"the numbers {digits}" if digits else f"{text!r}" if text.strip() else "nothing"
