"""Idle OpenMP threads wait long while the cores are ours and hardly while others want them; what the user said stands."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ambidex import engine, idling
from ambidex.fused.compiler import loaded_openmp
from ambidex.idling import (
    LEFT,
    QUIET_TURNS,
    WANTED,
    Crowd,
    Idling,
    Others,
    delays,
    is_left_to_us,
    is_room_for,
    longest_wait,
)

SHARES = st.floats(0, 2)


class Gathered:
    """Stands for a crowd, and keeps what was asked of it."""

    def __init__(self) -> None:
        self.here = False

    def gather(self, _computing: int) -> None:
        self.here = True

    def leave(self) -> None:
        self.here = False


@given(st.lists(SHARES), st.floats(WANTED, 2, exclude_min=True))
def test_one_turn_of_waiting_for_a_core_is_enough_to_give_way(before: list[float], share: float) -> None:
    others = Others()
    for earlier in before:
        others.see(earlier)
    assert others.see(share)


@given(st.lists(SHARES))
def test_whatever_was_before_some_quiet_turns_and_no_fewer_end_it(before: list[float]) -> None:
    others = Others()
    for earlier in [*before, WANTED * 2]:
        others.see(earlier)
    seen = [others.see(LEFT / 2) for _ in range(QUIET_TURNS)]
    assert seen == [True] * (QUIET_TURNS - 1) + [False]


@given(st.lists(st.floats(LEFT, WANTED), min_size=1), st.booleans())
def test_between_the_two_thresholds_nothing_changes(shares: list[float], wanted: bool) -> None:
    others = Others(want_cores=wanted)
    assert all(others.see(share) is wanted for share in shares)


def test_the_longest_wait_is_the_worst_threads_and_not_their_sum() -> None:
    before, now = {"1": 5_000_000_000, "2": 0}, {"1": 5_100_000_000, "2": 200_000_000, "new": 300_000_000}
    assert longest_wait(before, now, 0.5) == pytest.approx(0.6)


@pytest.mark.parametrize(("now", "seconds"), [({}, 0.5), ({"1": 7}, 0.0)])
def test_no_thread_or_no_time_is_no_wait(now: dict[str, int], seconds: float) -> None:
    assert longest_wait({}, now, seconds) == 0.0


def test_delays_are_each_threads_second_number_and_a_thread_that_ended_is_left_out(tmp_path: Path) -> None:
    for thread, text in (("10", "123 456 7\n"), ("11", ""), ("12", None)):
        (tmp_path / thread).mkdir()
        if text is not None:
            (tmp_path / thread / "schedstat").write_text(text)
    assert delays(tmp_path) == {"10": 456}


def test_a_kernel_without_these_numbers_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "10").mkdir()
    assert delays(tmp_path) is None
    (tmp_path / "10" / "schedstat").write_text("0 0 0\n")  # built without CONFIG_SCHED_INFO
    assert delays(tmp_path) is None
    assert delays(tmp_path / "nowhere") is None


def turns(*delayed: int | None) -> list[bool]:
    """Whether the crowd is there after each half second, in which one thread waited so many milliseconds."""
    crowd, total, times = Gathered(), 0, iter(range(len(delayed) + 1))
    told: list[dict[str, int] | None] = [{"1": 0}]
    for milliseconds in delayed:
        total += (milliseconds or 0) * 1_000_000
        told.append(None if milliseconds is None else {"1": total})
    watching = Idling(crowd, 2, iter(told).__next__, lambda: next(times) / 2)  # type: ignore[arg-type]
    found = []
    for _ in delayed:
        watching.look()
        found.append(crowd.here)
    return found


def test_the_crowd_comes_with_others_and_leaves_after_them() -> None:
    assert turns(0, 1, 200, 300, *[0] * QUIET_TURNS) == [False, False, *[True] * (QUIET_TURNS + 1), False]


def test_where_the_kernel_tells_nothing_idle_threads_sleep_early() -> None:
    assert turns(None, None) == [True, True]


@pytest.mark.parametrize(
    ("environ", "openmp", "ours"),
    [
        ({}, "libgomp.so.1", True),
        ({}, "libgomp-a34b3233.so.1", True),
        ({"GOMP_SPINCOUNT": "7"}, "libgomp.so.1", False),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "libgomp.so.1", False),
        ({"OMP_THREAD_LIMIT": "2"}, "libgomp.so.1", False),
        ({"OMP_STACKSIZE": "1G"}, "libgomp.so.1", False),
        ({"OMP_NUM_THREADS": "2"}, "libgomp.so.1", True),
        ({}, "libiomp5.so", False),
        ({}, "libomp.so", False),
        ({}, None, False),
    ],
)
def test_who_says_how_idle_threads_wait(environ: dict[str, str], openmp: str | None, ours: bool) -> None:
    assert is_left_to_us(environ, None if openmp is None else Path("/lib", openmp)) is ours


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_where_no_thread_can_be_started_nobody_gathers_and_nothing_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert is_room_for(3)
    libgomp = loaded_openmp()
    if libgomp is None or not is_left_to_us({}, libgomp):
        pytest.skip("needs GNU's OpenMP")
    crowd = Crowd(libgomp)
    no_room(monkeypatch)
    assert not is_room_for(1)
    crowd.gather(1)
    crowd.leave()


def test_a_device_is_made_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    engine._idling.cache_clear()
    no_room(monkeypatch)
    before = torch.get_num_threads()
    try:
        assert engine.Device("cpu", "fp32", threads=2).threads == 2
        assert engine._idling() is None
    finally:
        engine._idling.cache_clear()
        torch.set_num_threads(before)


# Counts how often the second thread of a team went to sleep while the first let it wait a hundredth of its usual patience.
SLEEPS = """
import sys, time
from pathlib import Path
import torch
from ambidex.fused.compiler import loaded_openmp
from ambidex.idling import Crowd
torch.set_num_threads(2)
before = {task.name for task in Path("/proc/self/task").iterdir()}
numbers = torch.zeros(1 << 18)
mine = [task for task in Path("/proc/self/task").iterdir() if task.name not in before]

def sleeps():
    lines = [line for task in mine for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))

def asleep(times=200):
    start = sleeps()
    for _ in range(times):
        numbers.add_(1)
        until = time.perf_counter() + 2e-4
        while time.perf_counter() < until:
            pass
    return sleeps() - start

crowd = Crowd(loaded_openmp())
alone = asleep()
crowd.gather(2)
crowd.gather(2)
beside = asleep()
crowd.leave()
deadline = time.monotonic() + 60
while len(list(Path("/proc/self/task").iterdir())) > len(before) + len(mine) and time.monotonic() < deadline:
    time.sleep(0.01)
print(alone, beside, asleep())
"""


@pytest.mark.skipif(
    not is_left_to_us({}, loaded_openmp()) or delays() is None or len(os.sched_getaffinity(0)) < 2,
    reason="needs GNU's OpenMP, Linux's numbers, and two processors",
)
def test_a_crowd_makes_idle_threads_sleep_and_its_leaving_makes_them_wait_again() -> None:
    environment = {name: value for name, value in os.environ.items() if "OMP_" not in name}
    environment["PYTHONPATH"] = str(Path(idling.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", SLEEPS], env=environment, capture_output=True, text=True, check=True)  # fmt: skip
    alone, beside, after = (int(word) for word in done.stdout.split())
    assert beside >= 100, done.stdout
    assert alone < beside, done.stdout
    assert after < beside, done.stdout
