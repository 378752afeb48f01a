"""The guard: where the CPU is forced, whatever in this process asks for CUDA gets an error that names its line.

Forcing the device settles where *our* tensors lie. It does not settle what a hook, a thread or a library does with
``.cuda()``, and overriding ``torch.cuda.is_available`` does not either: nothing on the way from ``.cuda()`` to the GPU
asks it. All of Python's ways to CUDA pass through ``torch.cuda._lazy_init``; so that is where the guard stands.
"""

from __future__ import annotations

import linecache
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

import torch

from ambidex.errors import Exit, Problem, Problems

_lock = threading.Lock()
_patched: list[tuple[ModuleType, Callable[[], None]]] = []
_reasons: list[str] = []  # one for each training under guard in this process; the first one is told
_TORCH = str(Path(torch.__file__).parent)
_LIBRARIES = (sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), sysconfig.get_path("stdlib"))


class CudaRefused(Problems, RuntimeError):  # noqa: N818  it is the refusal, with all that Problems carries
    """CUDA was asked for while the CPU is forced. A RuntimeError as torch's own is on a machine without a GPU, so
    that a library which copes with such a machine copes with the guard as well."""


@contextmanager
def cpu_guard(forced_by: Sequence[str]) -> Iterator[None]:
    """Within, every start of CUDA from Python raises `CudaRefused` (exit 2), in every thread of the process.

    Does nothing where ``forced_by`` is empty. Several may be entered at once, by several threads; the last to leave
    restores what was there. Blind to what C++ does by itself, and to a CUDA that had started before it was entered.
    """
    if not forced_by:
        yield
        return
    reason = " and ".join(forced_by)
    with _lock:
        if not _reasons:
            _stand_guard()
        _reasons.append(reason)
    try:
        yield
    finally:
        with _lock:
            _reasons.remove(reason)
            if not _reasons:
                _stand_down()


def _stand_guard() -> None:
    original = torch.cuda._lazy_init
    # torch.cuda.memory and torch.cuda.random hold references of their own.
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and getattr(module, "_lazy_init", None) is original:
            _patched.append((module, original))
            module._lazy_init = _refuse  # type: ignore[attr-defined]


def _stand_down() -> None:
    while _patched:
        module, original = _patched.pop()
        if module._lazy_init is _refuse:  # somebody else's patch on top of ours is theirs to take away
            module._lazy_init = original  # type: ignore[attr-defined]


def _refuse() -> NoReturn:
    asker, user = _calling_lines(sys._getframe(1))
    raise CudaRefused(
        Problem(
            "CUDA was asked for while the CPU is forced.",
            found=asker + (f", called from {user}" if user != asker else ""),
            wanted=f"tensors on the CPU: it is forced by {next(iter(_reasons), 'a training')}",
            fix="give that line the device of the tensors it works on, or take the force away",
        ),
        Exit.USAGE,
    )


def _calling_lines(frame: FrameType | None) -> tuple[str, str]:
    """The innermost line that is not torch's, and the innermost that is no library's: what asked, and for whom."""
    asker, last = "", ""
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, __file__)):
            last = _spelled(frame)
            asker = asker or last
            if not file.startswith(("<frozen", *_LIBRARIES)):
                return asker, last
        frame = frame.f_back
    return asker or "a line unknown", asker or "a line unknown"


def _spelled(frame: FrameType) -> str:
    file, number = frame.f_code.co_filename, frame.f_lineno
    source = linecache.getline(file, number).strip()
    return f"{file}, line {number}" + (f": {source}" if source else "")
