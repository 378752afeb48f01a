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
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TURN = 0.5  # seconds between looks: longer than a scheduler's slice, shorter than anyone notices
WANTED, LEFT = 0.05, 0.02  # the share of its time for which a thread that could run waits for a processor
QUIET_TURNS = 6  # before idle threads wait long again
MOST_THREADS = 64  # that are held; where more were needed, most cores are idle anyway
SPARE_THREADS = 8  # that could be started besides: libgomp ends the process when it can start no more

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
    """By thread; None where this kernel tells none (Documentation/scheduler/sched-stats.rst: time run, time waited, slices)."""
    found, counts = {}, False
    try:
        threads = os.listdir(tasks)  # noqa: PTH208  no Path here: twice a second, while others compute
    except OSError:
        return None
    for thread in threads:
        with suppress(OSError, IndexError, ValueError), open(f"{tasks}/{thread}/schedstat", "rb") as file:  # noqa: PTH123
            ran, waited, *_ = map(int, file.read().split())  # empty where the thread has ended meanwhile
            found[thread], counts = waited, counts or ran > 0
    return found if counts else None


class Crowd:
    """OpenMP threads that sleep, so many that libgomp has more of them than processors."""

    def __init__(self, libgomp: Path) -> None:
        """``libgomp`` is loaded already. Raises OSError or AttributeError where it is not what its name says."""
        library = ctypes.CDLL(str(libgomp), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        self._parallel, self._nothing = library.GOMP_parallel, library.omp_get_level
        self._parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self._parallel.restype = None
        self._processors = int(library.omp_get_num_procs())
        self._leave: threading.Event | None = None

    def gather(self, computing: int) -> None:
        """Beside ``computing`` threads a team of a thread that lives until `leave`. Twice is once; without room, none."""
        needed = max(2, self._processors - computing + 2)
        if self._leave is not None or needed > MOST_THREADS or not is_room_for(needed + SPARE_THREADS):
            return
        come, leave = threading.Event(), threading.Event()
        threading.Thread(target=self._hold, args=(needed, come, leave), name="crowd", daemon=True).start()
        come.wait()
        self._leave = leave

    def leave(self) -> None:
        """Let the team end with its thread."""
        if self._leave is not None:
            self._leave.set()
            self._leave = None

    def _hold(self, needed: int, come: threading.Event, leave: threading.Event) -> None:
        self._parallel(ctypes.cast(self._nothing, ctypes.c_void_p), None, needed, 0)
        come.set()
        leave.wait()


def is_room_for(threads: int) -> bool:
    """Whether so many can be started, by doing it: what limits them is spread over ulimits, cgroups and the kernel."""
    end = threading.Event()
    try:
        for _ in range(threads):
            threading.Thread(target=end.wait, daemon=True).start()
    except (RuntimeError, MemoryError):
        return False
    finally:
        end.set()
    return True


class Idling:
    """Looks every half second, in a thread of its own, whether others want the cores on which ``computing`` threads compute."""

    def __init__(
        self,
        crowd: Crowd,
        computing: int,
        waited: Callable[[], Delays | None] = delays,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.crowd, self.computing, self.others = crowd, computing, Others()
        self._waited, self._clock = waited, clock
        self._before, self._at = waited() or {}, clock()

    def start(self) -> None:
        """Raises RuntimeError where no thread can be started."""
        threading.Thread(target=self._watch, name="idling", daemon=True).start()

    def look(self) -> None:
        found, now = self._waited(), self._clock()
        # A kernel that tells nothing: idle threads sleep early, which is right where others are about.
        share = 1.0 if found is None else longest_wait(self._before, found, now - self._at)
        self._before, self._at = found or {}, now
        if self.others.see(share):
            self.crowd.gather(self.computing)
        else:
            self.crowd.leave()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(TURN):
            with suppress(RuntimeError):  # no thread can be started just now
                self.look()


def is_left_to_us(environ: Mapping[str, str], openmp: Path | None) -> bool:
    """Whether the OpenMP that torch loaded is GNU's and its user has not said how many threads there are and how they wait."""
    said = (
        "OMP_WAIT_POLICY",
        "GOMP_SPINCOUNT",
        "OMP_DYNAMIC",
        "OMP_THREAD_LIMIT",
        "OMP_STACKSIZE",
        "GOMP_STACKSIZE",
    )
    ours = openmp is not None and openmp.name.startswith("libgomp")
    return ours and not any(name in environ for name in said)
