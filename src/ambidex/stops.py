"""Signals that ask a run to stop: the first one finishes the step and saves, a second one ends the process at once.

Ctrl-C, SIGTERM (`docker stop`, batch systems), SIGHUP (the terminal is gone), and Windows' Ctrl-Break.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType

from ambidex.errors import Exit

_CODES = {
    getattr(signal, name): int(code)
    for name, code in (("SIGINT", Exit.INTERRUPTED), ("SIGTERM", Exit.TERMINATED), ("SIGHUP", Exit.HUNG_UP),
                       ("SIGBREAK", Exit.INTERRUPTED)) if hasattr(signal, name)
}  # fmt: skip


ECHO = 3.0  # seconds


class Stops:
    """While it is entered, ``asked`` holds the exit code that a signal asked for, or None.

    Until ``listening`` is set there is no step to finish, so the first signal ends the process as well. Signals reach
    the main thread only; started from another one (a notebook's worker), training leaves the handlers as they are.
    What was ignored stays ignored: that is how `nohup` works.

    Within ``echo`` seconds a second one is the first again: Slurm and systemd signal every process of a job, and a
    launcher among these passes on to its own what it has got.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self._echo, self._first = echo, 0.0
        self.asked: int | None = None  # by a signal to this process
        self.agreed: int | None = None  # by one to any process of the run
        self.listening = False
        self._before: dict[int, object] = {}

    def heard(self, highest: Callable[[int], int] = int) -> bool:
        """Whether any process of the run was asked to stop: all of them hear it at the same step.

        ``highest`` is the largest of the numbers that the processes call it with.
        """
        self.agreed = highest(self.asked or 0) or None
        return self.agreed is not None

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in _CODES:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # one that was not set from Python cannot be set back from it
                signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        code = _CODES[number]
        if self.asked is not None:
            if time.monotonic() - self._first >= self._echo:
                os._exit(code)
            return
        self.asked, self._first = code, time.monotonic()
        if code == Exit.HUNG_UP:
            leave_terminal()
        if not self.listening:
            sys.exit(code)
        with suppress(OSError):
            os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")


def leave_terminal() -> None:
    """Send what would go to a terminal nowhere: the one that hung up answers every line with an error."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_RDWR)
        for handle in (0, 1, 2):
            with suppress(OSError):
                if os.isatty(handle):
                    os.dup2(nowhere, handle)
        os.close(nowhere)


def end_at_once(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    os._exit(_CODES[number])


def obey_as_first_process() -> None:
    """In a container the program is process 1, which the kernel spares every signal it has no handler for; so the
    seconds before training has its own handlers would be deaf to `docker stop`."""
    if os.name == "nt" or os.getpid() != 1:
        return
    for number in _CODES:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, end_at_once)
