"""Ask another program something, within a time limit, and survive whatever it does.

`nvidia-smi` on a sick driver hangs where even SIGKILL does not reach it; so nothing here waits for a process
or for its pipes without a limit, and output beyond a limit is read and thrown away.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import IO

_KEPT_BYTES = 1 << 20


@dataclass(frozen=True)
class Answer:
    """What a program said. ``trouble`` is empty, or says in words why there is no whole answer."""

    out: str = ""
    err: str = ""
    code: int | None = None  # None where it was not started, or was stopped at the limit; -N for signal N
    trouble: str = ""


def ask(command: Sequence[str], *, seconds: float, environ: Mapping[str, str] | None = None) -> Answer:
    """Run ``command`` for at most ``seconds``. Never raises for anything the program does."""
    name = os.path.basename(command[0])  # noqa: PTH119  the name alone, of a path of any system
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if environ is None else dict(environ),
            start_new_session=os.name == "posix",
        )
    except FileNotFoundError:
        return Answer(trouble=f"{name} is not there")
    except (OSError, ValueError) as error:
        return Answer(trouble=f"{name} could not be started: {_words(error)}")
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = _Reader(process.stdout), _Reader(process.stderr)
    trouble = ""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        trouble = f"{name} did not answer within {seconds:g} s"
    finally:
        if process.poll() is None:
            _kill(process)
    code = None if trouble else process.returncode
    if code:
        trouble = f"{name} ended with {'signal' if code < 0 else 'code'} {abs(code)}"
    return Answer(out.text(), err.text(), code, trouble)


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class _Reader:
    """Keeps the first part of a stream and drains the rest, in a thread that nobody needs to wait for."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = bytearray()
        self._thread = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._thread.start()

    def _read(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError), stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                self._kept += chunk[: _KEPT_BYTES - len(self._kept)]

    def text(self) -> str:
        self._thread.join(0.5)
        return bytes(self._kept).decode("utf-8", "replace")
