"""Compile `passes.c` for this processor, once, and keep it for this user.

What is compiled is a file of this package; what is loaded is what this user's own compiler made of it: a file that is
this user's, that nobody else can write, and that ends in its own hash. Where no folder can be kept for this user alone, it
is compiled at every start (about a second).
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
import time
from collections.abc import Callable, Mapping
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
OF_AVX512 = (
    "-mprefer-vector-width=512",
)  # or gcc and clang take half of each register of many an Intel chip
SECONDS = 600  # that a compiler may take: many, so that no busy hour decides how a run computes
MAKING = ".making-"
FORMAT = "code, then its sha256"
# Run in a process of its own before anything is kept: an instruction that this machine lacks would end the process.
CHECK = """
import ctypes, sys
floats = ctypes.c_float * 20
x, weight, out, scale = floats(*range(1, 21)), floats(*[2] * 20), floats(), floats()
count, pointer = ctypes.c_int64, ctypes.byref
library = ctypes.CDLL(sys.argv[1])
failed = library.rms_norm(pointer(x), 0, count(1), count(20), pointer(weight), ctypes.c_float(0), pointer(out),
                          pointer(scale), count(1), count(20), 1)
wanted = 2 * 20 / (sum(n * n for n in range(1, 21)) / 20) ** 0.5
if failed or not abs(out[19] - wanted) <= 1e-5:
    sys.exit("what was made computes something else")
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
    try:
        compiler = find_compiler(environment)
    except ValueError as error:
        return Built(None, f"CC cannot be understood: {error}")
    if not compiler:
        asked = environment.get("CC", "").strip()
        return Built(
            None, f"CC names {asked}, which is not there" if asked else "no C compiler is installed (gcc)"
        )
    threads = loaded_openmp()
    if threads is None:
        return Built(None, "this torch has no OpenMP whose threads could be shared")
    try:
        wishes = OF_GCC + (OF_AVX512 if "avx512f" in processor.split() else ())
        name = f"passes-{key(compiler, wishes, processor, threads)}.so"
        for place in (cache, None):
            if found := kept_or_made(place, name, compiler, wishes, threads):
                return found
    except subprocess.TimeoutExpired:
        return Built(None, f"{compiler[0]} took more than {SECONDS} seconds")
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        return Built(None, f"{compiler[0]} could not make them: {words_of(error)}")
    return Built(None, "no folder here keeps whose a file is")


def kept_or_made(
    cache: Path | None, name: str, compiler: list[str], wishes: tuple[str, ...], threads: Path
) -> Built | None:
    """The compiled passes in ``cache``, or in a folder of this process's own; None where a file's owner is not kept."""
    folder, kept = place_for(cache)
    found = folder / name
    good = False
    try:
        if not is_own(found):
            make(compiler, wishes, threads, folder, found)
        good = is_own(found)  # not on a file system that knows no owners: FAT, some network's
    finally:
        if not good and not kept:
            shutil.rmtree(folder, ignore_errors=True)
    return Built(found, folder=None if kept else folder) if good else None


def words_of(error: Exception) -> str:
    """One line that says what was wrong: a compiler's own, where it has one."""
    said = (getattr(error, "stderr", None) or "").strip().splitlines()
    if said:
        return next((line for line in said if re.search(r"\berror\b", line)), said[-1]).strip()
    if isinstance(error, subprocess.CalledProcessError):
        return f"{Path(error.cmd[0]).name} ended in {error.returncode}"
    return str(error)


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
    found = re.findall(r"^\S+ \S+ \S+ \S+ \S+ +(/.*/lib[gi]?omp5?[^/]*\.so[^/\n]*)$", maps, re.MULTILINE)
    torchs = [
        path for path in found if "/torch/" in path or "/torch.libs/" in path
    ]  # other packages bring one too
    return Path((torchs or found)[0]) if found else None


def key(compiler: list[str], wishes: tuple[str, ...], processor: str, threads: Path) -> str:
    """Of what the compiled code depends on, but for the compiler's version: a run goes on with the code it began with."""
    parts = (FORMAT, *compiler, *FLAGS, *wishes, processor, threads.name, SOURCE.read_text("utf-8"))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def place_for(cache: Path | None) -> tuple[Path, bool]:
    """A folder to write in, and whether it outlives the process."""
    if cache is not None:
        folder = cache / "passes"
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if is_ours(folder.stat(), stat.S_ISDIR) and os.access(folder, os.W_OK | os.X_OK):
                sweep(folder)
                return folder, True
    return Path(tempfile.mkdtemp(prefix="ambidex-passes-")), False


def sweep(folder: Path) -> None:
    """Remove what a process that was killed left of its making."""
    for left in folder.glob(f"{MAKING}*"):
        with suppress(OSError):  # another process may be sweeping too
            if time.time() - left.stat().st_mtime > 2 * SECONDS:
                shutil.rmtree(left, ignore_errors=True)


def is_own(path: Path) -> bool:
    """Whether it is a file of this user's that nobody else may write."""
    try:
        return is_ours(path.lstat())
    except OSError:
        return False


def is_ours(status: os.stat_result, kind: Callable[[int], bool] = stat.S_ISREG) -> bool:
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return kind(status.st_mode) and status.st_uid == os.geteuid() and not shared


def make(compiler: list[str], wishes: tuple[str, ...], threads: Path, folder: Path, to: Path) -> None:
    """Compile, try in another process, and move into place. ``wishes`` are flags that a compiler may not know.

    Raises CalledProcessError, TimeoutExpired or OSError.
    """
    with tempfile.TemporaryDirectory(prefix=MAKING, dir=folder) as place:
        compiled, linked = Path(place, "passes.o"), Path(place, "passes.so")
        for _ in range(1 + len(wishes)):  # a compiler names one that it does not know, or all of them
            try:
                run([*compiler, *FLAGS, *wishes, "-c", str(SOURCE), "-o", str(compiled)])
                break
            except subprocess.CalledProcessError as error:
                known = tuple(flag for flag in wishes if flag.partition("=")[0] not in error.stderr)
                if known == wishes:
                    raise  # nothing that another compiler would not know: a full disk, say
                wishes = known
        # By the very file that torch loaded, not by -fopenmp, which would bring the compiler's own.
        run([*compiler, "-shared", str(compiled), str(threads), "-lm", "-o", str(linked)])
        libraries = [str(threads.parent), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
        run(
            [sys.executable or "python3", "-I", "-c", CHECK, str(linked)],
            LD_LIBRARY_PATH=os.pathsep.join(libraries),
        )
        linked.chmod(0o700)
        with linked.open("r+b") as file:  # what is loaded later is held against its own end first
            file.write(hashlib.sha256(file.read()).digest())
            file.flush()
            os.fsync(file.fileno())
        linked.replace(to)


def run(command: list[str], **environment: str) -> None:
    subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=SECONDS,
                   env={**os.environ, **environment}, stdin=subprocess.DEVNULL)  # fmt: skip
