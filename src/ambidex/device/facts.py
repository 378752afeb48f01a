"""What is here: one look at the build, the GPUs, the driver, the container, the processor and the
environment.

No judgement and no torch. Every reader takes its roots and commands as parameters, so that a test can put a
machine together on disk.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ambidex.device import container, cpu, environment, gpus_seen, hiding, installed
from ambidex.device.environment import Environment
from ambidex.device.gpus_seen import Seen
from ambidex.device.machine import Container, Cpu, Machine

_COMPILERS = ("g++", "c++", "clang++", "gcc", "cc", "clang")


@dataclass(frozen=True)
class Facts:
    """A machine as it was found, and what the rules do not ask for but the report shows."""

    machine: Machine
    environment: Environment
    seen: Seen = field(default_factory=Seen)
    compiler: str = ""  # the C++ compiler that torch.compile would find, '' where there is none
    threads_default: int = 1  # what torch takes by itself
    threads_advised: int = 1  # what a training step should use
    notes: tuple[str, ...] = ()  # what could not be read, in sentences


def look(
    python_env: str | Path | None = None,
    *,
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
    os_name: str | None = None,
    machine: str | None = None,
    where: Environment | None = None,
    look_at_gpus: Callable[[Path, Mapping[str, str]], Seen] = gpus_seen.look,
    look_at_cpu: Callable[[Path], Cpu] = cpu.look,
) -> Facts:
    """Everything about this machine and this Python, or the Python at ``python_env``.

    Raises `Problems` where ``python_env`` is no Python environment; whatever else is wrong stands in the
    result.
    """
    environ = os.environ if environ is None else environ
    os_name = os_name or this_os()
    machine = machine or this_machine()
    where = where or (environment.at(python_env) if python_env is not None else environment.this())
    build = installed.read(where)
    torch = Path(build.path) if build.path else None
    seen = look_at_gpus(root, environ)
    processor = look_at_cpu(root)
    return Facts(
        machine=Machine(
            os=os_name,
            machine=machine,
            python=where.python,
            build=build,
            gpus=hiding.mark(seen.gpus, environ, os_name),
            driver=seen.driver,
            container=container.look(root, environ) if os_name == "linux" else Container(),
            cpu=processor,
            env=hiding.relevant(environ),
            installer=environment.installer_of(where, torch, environ),
            executable=where.executable,
            companions=environment.companions(where, torch),
        ),
        environment=where,
        seen=seen,
        compiler=_compiler(os_name, environ),
        threads_default=cpu.threads_by_default(processor, environ, machine),
        threads_advised=cpu.threads_for_training(processor),
        notes=(*where.notes, *seen.notes, *_numbering(seen, environ)),
    )


def may_have_gpu(facts: Facts) -> bool:
    """Whether a child process is worth its seconds: a build with GPU code, and a sign of a GPU that it may
    see.
    """
    machine, build = facts.machine, facts.machine.build
    if build.missing or build.broken or facts.seen.hangs:
        return False
    if machine.os == "macos":
        return machine.machine == "aarch64"
    if build.hip is not None:
        return facts.seen.amd
    if build.cuda is None:
        return False
    return any(gpu.visible for gpu in machine.gpus) if machine.gpus else facts.seen.nvidia


def this_os() -> str:
    return {"win32": "windows", "darwin": "macos"}.get(sys.platform, "linux")


def this_machine() -> str:
    """``x86_64`` or ``aarch64``, however the system spells it."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(name, name or "x86_64")


def _compiler(os_name: str, environ: Mapping[str, str]) -> str:
    names = ("cl", "clang-cl") if os_name == "windows" else _COMPILERS
    wanted = environ.get("CXX", "").split()[:1]
    found = (shutil.which(name, path=environ.get("PATH")) for name in (*wanted, *names))
    return next((path for path in found if path), "")


def _numbering(seen: Seen, environ: Mapping[str, str]) -> tuple[str, ...]:
    if len(seen.gpus) < 2 or hiding.order_is_certain(seen.gpus, environ):
        return ()
    return (
        "the GPUs differ and CUDA_DEVICE_ORDER is not set: CUDA numbers the fastest first, nvidia-smi by "
        "the PCI bus, so "
        "cuda:0 need not be GPU 0 below (CUDA_DEVICE_ORDER=PCI_BUS_ID makes them agree)",
    )
