"""SIGTERM, SIGINT and SIGHUP at random instants, in a process and as process 1 of a container, resumed until done."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import bits, command, dice, story, to_the_end, warm, words

STEPS, SAVE_EVERY = 30, 3
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGHUP: 129}


def run(place: Path, instants: int = 50, container: bool = True, seed: int = 3) -> dict[str, Any]:
    warm()
    data, random = story(place), dice(seed)
    started = time.monotonic()
    assert (
        to_the_end(
            command(words(data, place / "straight", steps=STEPS, save_every=SAVE_EVERY), place / "log.txt")
        )
        == 0
    )
    whole = time.monotonic() - started
    wanted = bits(place / "straight", STEPS)
    found: dict[str, Any] = {"broken": [], "not_run": []}
    found["process"] = _process(place, data, wanted, whole, instants, random, found["broken"])
    if container and (why := _no_namespaces()):
        found["not_run"].append(f"process 1: {why}")
    elif container:
        found["process_1"] = _first_process(place, data, wanted, instants, random, found["broken"])
    return found


def _process(
    place: Path, data: Path, wanted: str, whole: float, instants: int, random: Any, broken: list[Any]
) -> dict[str, int]:
    told = {"instants": 0, "finished_before": 0, "stopped_with_the_code": 0, "identical_after_resume": 0}
    for number in range(instants):
        out, log = place / f"run-{number}", place / f"log-{number}.txt"
        sent = list(CODES)[number % 3]
        child = command(words(data, out, steps=STEPS, save_every=SAVE_EVERY), log)
        time.sleep(random.uniform(0, whole))
        os.kill(child, sent)
        code = to_the_end(child)
        _judge(told, broken, out, log, code, (CODES[sent], -sent), wanted)
    return told


def _judge(
    told: dict[str, int],
    broken: list[Any],
    out: Path,
    log: Path,
    code: int,
    codes: tuple[int, ...],
    wanted: str,
) -> None:
    """After the signal: the code, a complete checkpoint of the last row, no traceback; then the same bits."""
    said = log.read_text(errors="replace")
    told["instants"] += 1
    told["finished_before"] += code == 0
    told["stopped_with_the_code"] += code in codes
    good = True
    if (out / "checkpoints").exists() and code in codes and code > 0:
        rows = (out / "metrics.csv").read_text().count("\n") - 1
        steps = sorted(path.name for path in (out / "checkpoints").glob("step-*"))
        good = (
            bool(steps)
            and steps[-1] == f"step-{rows:06d}"
            and not list((out / "checkpoints").glob(".step-*"))
        )
    again = 0
    if code != 0:
        words_ = ["train", "--resume", "--out", str(out)]
        if not (out / "card.json").exists():
            words_ = words(log.parent / "story.txt", out, steps=STEPS, save_every=SAVE_EVERY)
        again = to_the_end(command(words_, log))
    same = again == 0 and bits(out, STEPS) == wanted
    told["identical_after_resume"] += same
    if not good or not same or code not in (0, *codes) or "Traceback" in said:
        broken.append(
            {"exit": code, "wanted": codes, "resumed": again, "checkpoint": good, "said": said[-700:]}
        )
    shutil.rmtree(out, ignore_errors=True)


def _no_namespaces() -> str:
    if shutil.which("unshare") is None:
        return "no unshare"
    tried = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True, check=False)
    return tried.stderr.strip() if tried.returncode else ""


# What a container engine does for this question: the program is process 1 of a process namespace of its own.
NAMESPACES = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL"]


def _first_process(
    place: Path, data: Path, wanted: str, instants: int, random: Any, broken: list[Any]
) -> dict[str, int]:
    told = {"instants": 0, "finished_before": 0, "stopped_with_the_code": 0, "identical_after_resume": 0}
    started = time.monotonic()
    log = place / "first.txt"
    outer = _start(words(data, place / "first", steps=STEPS, save_every=SAVE_EVERY), log)
    outer.wait(120)
    whole = time.monotonic() - started
    for number in range(instants):
        out, log = place / f"first-{number}", place / f"first-{number}.txt"
        sent = (signal.SIGTERM, signal.SIGINT)[number % 2]
        outer = _start(words(data, out, steps=STEPS, save_every=SAVE_EVERY), log)
        time.sleep(random.uniform(0.1, whole))
        inner = _inner(outer.pid)
        if inner:
            try:
                os.kill(inner, sent)
            except ProcessLookupError:
                inner = 0
        try:
            code = outer.wait(60)
        except subprocess.TimeoutExpired:  # deaf to the signal: what `docker stop` would answer with SIGKILL
            outer.kill()
            code = -99
        # Before Python itself runs, the kernel drops a signal to process 1: then the training goes on to its end.
        _judge(told, broken, out, log, code, (CODES[sent],), wanted)
    return told


def _start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [*NAMESPACES, sys.executable, "-m", "ambidex", *arguments], stdout=output, stderr=output
        )


def _inner(outer: int) -> int:
    """The process that is 1 within."""
    try:
        return int(Path(f"/proc/{outer}/task/{outer}/children").read_text().split()[0])
    except (OSError, IndexError):
        return 0
