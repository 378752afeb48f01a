"""SIGKILL at a random instant, half of them inside a save, resumed until done: are the final bits the same?"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

from common import bits, command, dice, ended, story, to_the_end, warm, words

STEPS, SAVE_EVERY = 20, 2


def run(place: Path, runs: int = 200, seed: int = 1) -> dict[str, Any]:
    """Figures of ``runs`` trainings, each killed one to three times."""
    warm()
    data, random = story(place), dice(seed)
    straight = words(data, place / "straight", steps=STEPS, save_every=SAVE_EVERY)
    assert to_the_end(command(straight, place / "log.txt")) == 0, (place / "log.txt").read_text()
    started = time.monotonic()
    again = words(data, place / "timed", steps=STEPS, save_every=SAVE_EVERY)
    assert to_the_end(command(again, place / "log.txt")) == 0
    whole = time.monotonic() - started
    wanted = bits(place / "straight", STEPS)
    found = {"runs": 0, "kills": 0, "kills_aimed_inside_a_save": 0, "kills_inside_a_save": 0, "identical": 0,
             "different_or_lost": [], "seconds_of_one_run": round(whole, 2)}  # fmt: skip
    assert bits(place / "timed", STEPS) == wanted, "two runs without a kill must be equal"
    for number in range(runs):
        out, aimed = place / f"run-{number}", number % 2 == 0
        log = place / f"log-{number}.txt"
        for attempt in range(40):
            child = command(words(data, out, steps=STEPS, save_every=SAVE_EVERY) if not (out / "card.json").exists()
                            else ["train", "--resume", "--out", str(out)], log)  # fmt: skip
            if attempt >= 1 + number % 3:
                code = to_the_end(child)
                break
            code = _kill(child, out / "checkpoints", random, aimed, whole, found)
            if code is not None:
                break
        found["runs"] += 1
        if code == 0 and bits(out, STEPS) == wanted:
            found["identical"] += 1
            shutil.rmtree(out)
            log.unlink()
        else:
            found["different_or_lost"].append({"run": number, "exit": code, "log": log.read_text()[-600:]})
    return found


def _kill(
    child: int, checkpoints: Path, random: Any, aimed: bool, whole: float, found: dict[str, Any]
) -> int | None:
    """Kill the child, or return the exit code in which it ended before. Aimed: from the moment a save begins."""
    if aimed:
        for _ in range(random.randint(1, STEPS // SAVE_EVERY // 2)):  # so many saves begin before it
            code = _wait_for_save(child, checkpoints)
            if code is not None:
                return code
        stop = time.monotonic() + random.uniform(0, 0.012)
        found["kills_aimed_inside_a_save"] += 1
    else:
        stop = time.monotonic() + random.uniform(0, whole)
    while time.monotonic() < stop:
        if not aimed and (code := ended(child)) is not None:
            return code
    os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != -signal.SIGKILL:
        return code
    found["kills"] += 1
    found["kills_inside_a_save"] += bool(_unfinished(checkpoints))
    return None


def _unfinished(checkpoints: Path) -> list[str]:
    try:
        return [n for n in os.listdir(checkpoints) if n.startswith(".step-")]
    except OSError:
        return []


def _wait_for_save(child: int, checkpoints: Path) -> int | None:
    """Until a save that was not there begins; the exit code where the process ended instead."""
    before = set(_unfinished(checkpoints))
    while True:
        now = set(_unfinished(checkpoints))
        if now - before:
            return None
        before &= now
        if (code := ended(child)) is not None:
            return code
