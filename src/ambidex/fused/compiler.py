"""Compile `passes.c` for this processor, once, and keep it for this user.

What is compiled is a file of this package; what is loaded is what this user's own compiler made of it: a file that is
this user's and that nobody else can write, whoever may write to the folder around it. Where no folder can be written,
it is compiled at every start (about a second).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("passes.c")
# Sums keep their order and what is not a number stays so; a square root need set no errno.
FLAGS = (
    "-std=c11",
    "-O2",
    "-ftree-vectorize",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
    "-fPIC",
    "-fopenmp",
)
# gcc's alone. With -O2 it would leave loops of unknown length as they are, and where it follows a constant through a
# bound (jump threading) it computes both ways for every number: twice the time of `exponential` (gcc 12).
OF_GCC = ("-fvect-cost-model=dynamic", "-fno-thread-jumps")
SECONDS = 60  # that a compiler may take
# Run in a process of its own before anything is kept: an instruction that this machine lacks would end the process.
CHECK = """
import ctypes, sys
floats = ctypes.c_float * 20
x, weight, out, scale = floats(*range(1, 21)), floats(*[2] * 20), floats(), floats()
count, pointer = ctypes.c_int64, ctypes.byref
library = ctypes.CDLL(sys.argv[1])
failed = library.rms_norm(pointer(x), 0, count(1), count(20), pointer(weight), ctypes.c_float(0), pointer(out), 0,
                          pointer(scale), count(1), count(20), 1)
wanted = 2 * 20 / (sum(n * n for n in range(1, 21)) / 20) ** 0.5
sys.exit(bool(failed) or abs(out[19] - wanted) > 1e-5)
"""


@dataclass(frozen=True)
class Built:
    """A shared object to load, or why there is none. ``folder`` is to be removed once it is loaded, where it is private."""

    path: Path | None
    why_not: str = ""
    folder: Path | None = None


def build(cache: Path | None, processor: str, environment: Mapping[str, str]) -> Built:
    """The compiled passes, from ``cache`` where they are there already; ``processor`` tells machines apart that share it."""
    if not sys.platform.startswith("linux"):
        return Built(None, "they are only for Linux so far")
    compiler = find_compiler(environment)
    if not compiler:
        return Built(None, "no C compiler is installed (gcc)")
    threads = loaded_openmp()
    if threads is None:
        return Built(None, "this torch has no OpenMP whose threads could be shared")
    try:
        name = f"passes-{key(compiler, processor, threads)}.so"
        folder, kept = place_for(cache)
        found = folder / name
        if not is_own(found):
            make(compiler, threads, folder, found)
        return Built(found, folder=None if kept else folder)
    except subprocess.TimeoutExpired:
        return Built(None, f"{compiler[0]} took more than {SECONDS} seconds")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        return Built(
            None,
            f"{compiler[0]} could not make them: {said.strip().splitlines()[-1] if said.strip() else error}",
        )


def find_compiler(environment: Mapping[str, str]) -> list[str]:
    """What ``CC`` names, or gcc, or whatever calls itself cc; empty where there is none."""
    asked = shlex.split(environment.get("CC", ""))
    for words in [asked] if asked else [["gcc"], ["cc"]]:
        if path := shutil.which(words[0]):
            return [path, *words[1:]]
    return []


def loaded_openmp() -> Path | None:
    """The OpenMP that torch has loaded. A second one beside it would have threads of its own, fighting for the same cores."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return None
    found = re.search(r"^\S+ \S+ \S+ \S+ \S+ +(/.*/lib(?:g|i)omp5?[^/]*\.so[^/\n]*)$", maps, re.MULTILINE)
    return Path(found[1]) if found else None


def key(compiler: list[str], processor: str, threads: Path) -> str:
    """Of everything that the compiled bytes depend on."""
    real = Path(compiler[0]).resolve()
    status = real.stat()
    parts = (
        *compiler,
        real,
        status.st_size,
        status.st_mtime_ns,
        *FLAGS,
        *OF_GCC,
        processor,
        threads,
        SOURCE.read_text("utf-8"),
    )
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:20]


def place_for(cache: Path | None) -> tuple[Path, bool]:
    """A folder to write in, and whether it outlives the process."""
    if cache is not None:
        folder = cache / "passes"
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder, True
    return Path(tempfile.mkdtemp(prefix="ambidex-passes-")), False


def is_own(path: Path) -> bool:
    """Whether it is a file of this user's that nobody else may write."""
    try:
        return is_ours(path.lstat())
    except OSError:
        return False


def is_ours(status: os.stat_result) -> bool:
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not shared


def make(compiler: list[str], threads: Path, folder: Path, to: Path) -> None:
    """Compile, try in another process, and move into place. Raises CalledProcessError, TimeoutExpired or OSError."""
    with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as place:
        compiled, linked = Path(place, "passes.o"), Path(place, "passes.so")
        try:
            run([*compiler, *FLAGS, *OF_GCC, "-c", str(SOURCE), "-o", str(compiled)])
        except subprocess.CalledProcessError:
            run([*compiler, *FLAGS, "-c", str(SOURCE), "-o", str(compiled)])
        # By the very file that torch loaded, not by -fopenmp, which would bring the compiler's own.
        run([*compiler, "-shared", str(compiled), str(threads), "-lm", "-o", str(linked)])
        run([sys.executable, "-I", "-c", CHECK, str(linked)], LD_LIBRARY_PATH=str(threads.parent))
        linked.chmod(0o700)
        linked.replace(to)


def run(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **environment},
                   stdin=subprocess.DEVNULL)  # fmt: skip
