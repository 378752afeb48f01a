"""How long idle OpenMP threads wait for work before they sleep: long while the cores are ours, hardly while others want them.

GNU's OpenMP, which torch's Linux wheels bring, has an idle thread turn in a loop for milliseconds, so that the next
operation need not wake it. On a machine that others use too it then holds the core that the thread it waits for needs,
and a step takes two to ten times as long (docs/experiments.md). Neither is right for hours, and libgomp reads how long to
wait only once, when it is loaded. But while a process has more OpenMP threads than processors they turn 100 times and not
300,000 (https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html): so where others want the cores this holds as many
sleeping threads as make it more. No number that is computed depends on it.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TURN = 0.5  # seconds between looks: longer than a scheduler's slice, shorter than anyone notices
WANTED, LEFT = 0.05, 0.02  # the share of its time for which a thread that could run waits for a processor
QUIET_TURNS = 6  # before idle threads wait long again
MOST_THREADS = 256  # that are held: libgomp ends the process when it can start no more

Delays = Mapping[str, int]  # nanoseconds that each thread has waited for a processor so far


@dataclass
class Others:
    """Whether others want the cores, by what our own threads had to wait for one."""

    want_cores: bool = False
    quiet_turns: int = 0

    def see(self, share: float) -> bool:
        """``share`` of the last turn for which the thread that waited longest did wait. Slow to believe that they are gone."""
        self.quiet_turns = self.quiet_turns + 1 if share < LEFT else 0
        if share > WANTED:
            self.want_cores = True
        elif self.quiet_turns >= QUIET_TURNS:
            self.want_cores = False
        return self.want_cores


def longest_wait(before: Delays, now: Delays, seconds: float) -> float:
    """The largest share of ``seconds`` for which a thread waited; one that began meanwhile had waited 0 before."""
    waits = [delay - before.get(thread, 0) for thread, delay in now.items()]
    return max(waits, default=0) / 1e9 / seconds if seconds > 0 else 0.0


def delays(tasks: Path = Path("/proc/self/task")) -> dict[str, int] | None:
    """By thread; None where this kernel tells none. (Documentation/scheduler/sched-stats.rst: the second number.)"""
    found = {}
    try:
        threads = list(tasks.iterdir())
    except OSError:
        return None
    for thread in threads:
        with suppress(OSError, IndexError, ValueError):  # it may have ended meanwhile
            found[thread.name] = int((thread / "schedstat").read_text("ascii").split()[1])
    return found or None


class Crowd:
    """OpenMP threads that sleep, one more than there are processors, so that libgomp has too many whoever computes."""

    def __init__(self, libgomp: Path) -> None:
        """Raises OSError or AttributeError where the library is not what its name says."""
        library = ctypes.CDLL(str(libgomp))
        self._parallel, self._nothing = library.GOMP_parallel, library.omp_get_level
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        self.threads = min(library.omp_get_num_procs() + 1, MOST_THREADS)
        self._leave: threading.Event | None = None

    def gather(self) -> None:
        """A team of a thread that lives until `leave`. Twice is once."""
        if self._leave is not None:
            return
        self._leave, come = threading.Event(), threading.Event()
        threading.Thread(target=self._hold, args=(come, self._leave), name="crowd", daemon=True).start()
        come.wait()

    def leave(self) -> None:
        """Let the team end with its thread."""
        if self._leave is not None:
            self._leave.set()
            self._leave = None

    def _hold(self, come: threading.Event, leave: threading.Event) -> None:
        self._parallel(ctypes.cast(self._nothing, ctypes.c_void_p), None, self.threads, 0)
        come.set()
        leave.wait()


class Idling:
    """Looks every half second, in a thread of its own, whether others want the cores."""

    def __init__(
        self,
        crowd: Crowd,
        waited: Callable[[], Delays | None] = delays,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.crowd, self.others = crowd, Others()
        self._waited, self._clock = waited, clock
        self._before, self._at = waited() or {}, clock()

    def start(self) -> None:
        threading.Thread(target=self._watch, name="idling", daemon=True).start()

    def look(self) -> None:
        found, now = self._waited(), self._clock()
        # A kernel that tells nothing: idle threads sleep early, which is right where others are about.
        share = 1.0 if found is None else longest_wait(self._before, found, now - self._at)
        self._before, self._at = found or {}, now
        if self.others.see(share):
            self.crowd.gather()
        else:
            self.crowd.leave()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(TURN):
            self.look()


def is_left_to_us(environ: Mapping[str, str], openmp: Path | None) -> bool:
    """Whether the OpenMP that torch loaded is GNU's and its user has not said how idle threads wait."""
    said = "OMP_WAIT_POLICY" in environ or "GOMP_SPINCOUNT" in environ
    return openmp is not None and openmp.name.startswith("libgomp") and not said
