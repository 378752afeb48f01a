"""A step that hangs ends the process with a place; what is merely slow, or was asleep, does not."""

import threading
import time

import pytest

from ambidex import watchdog
from ambidex.watchdog import UNWATCHED, Watchdog


@pytest.fixture
def ends():
    return []


def watching(tmp_path, ends, timeout, done: threading.Event | None = None) -> Watchdog:
    return Watchdog(timeout, tmp_path / "hang.txt", "ambidex train --resume", lambda: None,
                    lambda code: (ends.append(code), done and done.set()))  # fmt: skip


def test_a_step_that_hangs_is_named_with_its_stack(tmp_path, ends, capfd):
    done = threading.Event()
    with watching(tmp_path, ends, 0.05, done) as dog:
        for step in range(UNWATCHED):
            with dog.step(step + 1):
                pass
        with dog.step(UNWATCHED + 1):
            assert done.wait(60)
    assert ends == [8]
    said = capfd.readouterr().err
    assert f"Step {UNWATCHED + 1} has not come to its end" in said
    assert "ambidex train --resume" in said
    assert "test_watchdog.py" in (tmp_path / "hang.txt").read_text()


def test_first_steps_evaluations_and_pauses_between_steps_are_not_timed(tmp_path, ends):
    with watching(tmp_path, ends, 0.02) as dog:
        for step in range(UNWATCHED):
            with dog.step(step + 1):
                time.sleep(0.2)
        time.sleep(0.2)
    assert ends == []


def test_time_in_which_the_machine_slept_does_not_count(tmp_path, ends, monkeypatch):
    clock = iter([0.0, *(3600.0 * n for n in range(1, 10_000))])
    dog = watching(tmp_path, ends, 100.0)
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(clock))
    waits = iter([False] * 20 + [True])
    dog._closed.wait = lambda tick: next(waits)  # type: ignore[method-assign]
    dog._watched = watchdog.Watched("Step 9", 100.0)
    dog._watch()  # twenty ticks, each an hour long by the clock: at most two seconds are counted for each
    assert ends == []


def test_auto_is_generous_and_grows_with_the_slowest_step(tmp_path, ends):
    dog = watching(tmp_path, ends, "auto")
    assert dog.limit() == 600
    dog._slowest = 30.0
    assert dog.limit() == 1500


def test_0_watches_nothing(tmp_path, ends):
    with watching(tmp_path, ends, 0.0) as dog:
        assert dog._thread is None


def test_what_a_pause_took_does_not_count_against_the_step_after_it(tmp_path, ends):
    dog = watching(tmp_path, ends, 10.0)
    with dog._watching("before", 10.0):
        before = dog._watched
    with dog._watching("Step 9", 10.0):
        before.spent += 3600.0  # the watching thread was overtaken between its look and its sum
        assert dog._watched.spent == 0.0
        assert dog._watched is not before


def test_one_that_may_not_write_names_no_file(tmp_path, ends, capfd):
    done = threading.Event()
    dog = Watchdog(0.05, None, "", lambda: None, lambda code: (ends.append(code), done.set()))
    dog._steps = UNWATCHED
    with dog, dog.step(9):
        assert done.wait(60)
    assert "every thread's stack is above" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
