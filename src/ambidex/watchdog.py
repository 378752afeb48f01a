"""A step that hangs ends the process, with a sentence that says where; the last checkpoint remains.

Only what is watched can hang: single steps after the first few, and waiting for the disk. Evaluations, samples and
compilation are not timed. Time is counted in the watchdog's own ticks, so that a laptop that was suspended, or a
process that was stopped with Ctrl-Z, has lost one tick and not an afternoon.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ambidex.errors import Exit, Problem, Problems

UNWATCHED = 3  # steps at the start of a process: they pay for memory, threads and compilation
TIMES, LEAST = 50, 600.0  # "auto": so many times the slowest step so far, and at least so many seconds
LONGEST_TICK = 1.0  # seconds


@dataclass
class Watched:
    """What is under way. A new one each time: what the watching thread adds late goes to the one before."""

    what: str
    limit: float  # seconds; 0: none
    spent: float = 0.0


class Watchdog:
    """Watches what is done within ``step()`` and ``waiting()``. ``timeout`` is in seconds, 0: never, or "auto".

    ``report`` is the file that gets every thread's stack, None where another process has it; ``before_the_end`` may finish what must not be cut off.
    """

    def __init__(
        self, timeout: float | str, report: Path | None, again: str = "",
        before_the_end: Callable[[], None] = lambda: None, end: Callable[[int], object] = os._exit,
    ) -> None:  # fmt: skip
        self._timeout, self._report, self._again = timeout, report, again
        self._before_the_end, self._end = before_the_end, end
        self._steps, self._slowest = 0, 0.0
        self._watched: Watched | None = None
        self._closed = threading.Event()
        self._main = threading.get_ident()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if self._timeout:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around one update."""
        started = time.monotonic()
        limit = self.limit() if self._steps >= UNWATCHED else 0.0
        with self._watching(f"Step {number}", limit):
            yield
        self._steps += 1
        if self._steps > 1:
            self._slowest = max(self._slowest, time.monotonic() - started)

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Around a wait for the disk, which is given ten minutes at least."""
        with self._watching(what, max(LEAST, self.limit())):
            yield

    def limit(self) -> float:
        """Seconds that a step may take now."""
        return max(LEAST, TIMES * self._slowest) if isinstance(self._timeout, str) else self._timeout

    @contextmanager
    def _watching(self, what: str, limit: float) -> Iterator[None]:
        self._watched = Watched(what, limit) if limit else None
        try:
            yield
        finally:
            self._watched = None

    def _watch(self) -> None:
        tick = (
            min(LONGEST_TICK, self._timeout / 4) if isinstance(self._timeout, float | int) else LONGEST_TICK
        )
        before = time.monotonic()
        while not self._closed.wait(tick):
            now = time.monotonic()
            passed, before = min(now - before, 2 * tick), now
            watched = self._watched
            if watched is None:
                continue
            watched.spent += passed
            if watched.spent > watched.limit and self._watched is watched and not self._closed.is_set():
                self._bark(watched.what, watched.limit)
                return

    def _bark(self, what: str, limit: float) -> None:
        frame = sys._current_frames().get(self._main)
        where = traceback.extract_stack(frame)[-1] if frame is not None else None
        told = self._write_report()
        with suppress(Exception):
            faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        with suppress(Exception):
            self._before_the_end()
        said = Problems(
            Problem(f"{what} has not come to its end.",
                    found=f"more than {limit:.0f} s" + (f", in {where.filename}, line {where.lineno}, {where.name}" if where else "")
                          + f"; every thread's stack is {told}",
                    wanted=f"at most {limit:.0f} s: --step-timeout",
                    fix=self._again or "repeat the command with --resume: the last checkpoint remains"), Exit.HUNG,
        )  # fmt: skip
        with suppress(OSError):
            os.write(2, f"\n{said}\n".encode("utf-8", "backslashreplace"))
        self._end(int(Exit.HUNG))

    def _write_report(self) -> str:
        """Where the stacks are: they go to standard error in any case."""
        if self._report is not None:
            with suppress(OSError):
                self._report.unlink(missing_ok=True)  # an older one, or a pipe, which would have us wait
                with self._report.open("x", encoding="utf-8") as file:
                    faulthandler.dump_traceback(file, all_threads=True)
                return f"in {self._report}"
        return "above"
