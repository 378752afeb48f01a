"""Ctrl-C and SIGTERM: the first one finishes the step and saves, a second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType

from ambidex.errors import Exit

_CODES = {signal.SIGINT: int(Exit.INTERRUPTED), signal.SIGTERM: int(Exit.TERMINATED)}


class Stops:
    """While it is entered, ``asked`` holds the exit code that a signal asked for, or None.

    Until ``listening`` is set there is no step to finish, so the first signal ends the process as well. Signals reach
    the main thread only; started from another one (a notebook's worker), training leaves the handlers as they are.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # by a signal to this process
        self.agreed: int | None = None  # by one to any process of the run
        self.listening = False
        self._before: dict[signal.Signals, object] = {}

    def heard(self, highest: Callable[[int], int] = int) -> bool:
        """Whether any process of the run was asked to stop: all of them hear it at the same step.

        ``highest`` is the largest of the numbers that the processes call it with.
        """
        self.agreed = highest(self.asked or 0) or None
        return self.agreed is not None

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in _CODES:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        code = _CODES[signal.Signals(number)]
        if self.asked is not None:
            os._exit(code)
        self.asked = code
        if not self.listening:
            sys.exit(code)
        os.write(2, b"\nstopping after this step, with a checkpoint; once more to stop at once\n")
