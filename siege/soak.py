"""Ten minutes with a save every second: does memory stay flat, do files stay closed, does the disk stay bounded?"""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

from common import command, ended, story, to_the_end, warm, words

WARM_UP = 0.2  # part of the time after which memory must be flat
MOST_GROWTH = 0.05  # of the median, between the second fifth and the last


def run(place: Path, seconds: float = 600.0) -> dict[str, Any]:
    warm()
    data, out = story(place), place / "run"
    # Steps small enough that a save every so many of them is a save every second or less.
    settings = {
        "steps": 900_000,
        "evaluate_every": 1_000,
        "save_every": 15,
        "width": 64,
        "feed_forward": 256,
        "sample_tokens": 0,
    }
    child = command(words(data, out, **settings), place / "log.txt")
    started = time.monotonic()
    samples: list[tuple[float, int, int, int]] = []
    first_rows = _rows(out)
    while time.monotonic() - started < seconds and ended(child) is None:
        time.sleep(min(1.0, seconds / 40))
        samples.append((time.monotonic() - started, _resident(child), _open(child), _checkpoints(out)))
    code = ended(child)
    if code is None:
        os.kill(child, signal.SIGTERM)
        code = to_the_end(child, 60)
    late = [s for s in samples if s[0] > seconds * WARM_UP]
    early = [s[1] for s in late if s[0] < seconds * 2 * WARM_UP]
    last = [s[1] for s in late if s[0] > seconds * (1 - WARM_UP)]
    grown = statistics.median(last) / statistics.median(early) - 1
    rows = _rows(out) - first_rows
    size = max(s[3] for s in late)
    one = _size(next((out / "checkpoints").glob("step-*")))
    found: dict[str, Any] = {
        "saves": rows // settings["save_every"], "steps": rows, "saves_per_second": round(rows / settings["save_every"] / seconds, 2),
        "resident_MB_second_fifth": round(statistics.median(early) / 1e6, 1),
        "resident_MB_last_fifth": round(statistics.median(last) / 1e6, 1), "memory_growth": f"{grown:+.1%}",
        "open_files_at_most": max(s[2] for s in late), "open_files_at_first": min(s[2] for s in late),
        "checkpoint_bytes": one, "checkpoints_on_disk_at_most": round(size / one, 1), "exit": code, "broken": [],
    }  # fmt: skip
    if grown > MOST_GROWTH:
        found["broken"].append("memory grows")
    if max(s[2] for s in late[-5:]) > max(s[2] for s in late[:5]) + 2:
        found["broken"].append("files stay open")
    if size > 5.5 * one:  # keep 2, the best, the one that is written and the one that is deleted
        found["broken"].append("the disk fills")
    if (
        code != 143 or found["saves"] < seconds / 10
    ):  # a busy machine is slower, and no promise is broken by that
        found["broken"].append(
            f"exit {code}, {found['saves']} saves: {(place / 'log.txt').read_text()[-500:]}"
        )
    return found


def _resident(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _open(process: int) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/fd"))
    except OSError:
        return 0


def _checkpoints(run: Path) -> int:
    return _size(run / "checkpoints")


def _size(folder: Path) -> int:
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(path, name)).st_size
            except OSError:
                continue
    return total


def _rows(run: Path) -> int:
    try:
        return (run / "metrics.csv").read_bytes().count(b"\n")
    except OSError:
        return 0
