"""`ambidex top`: the runs of a folder in one table, refreshed on a terminal, printed once elsewhere. Imports no torch."""

from __future__ import annotations

import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.glance import Glance, glance, runs_in

HEAD = ("run", "state", "step", "loss", "tokens/s", "left", "checkpoint")
LEFT_ALIGNED = 2  # columns; the rest are figures
MOST = 200  # runs that are looked at in one go
STATES = ("training", "unreadable", "stopped", "not begun", "finished")  # what wants attention stands first
HOME, CLEAR_BELOW, CLEAR_LINE = "\x1b[H", "\x1b[J", "\x1b[K"


def show(root: Path, *, once: bool, every: float) -> int:
    """Print the table, again and again while standard output is a terminal. Raises Problems (exit 3) without a folder."""
    if not os.path.isdir(root):  # noqa: PTH112  it says no as well of a name that can be none
        raise Problems(
            Problem("There is no such folder.", found=str(root), wanted="a folder of runs, or one run",
                    fix="ambidex train makes a first run; ambidex top DIR looks elsewhere"), Exit.DATA,
        )  # fmt: skip
    if once or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        print("\n".join(table(look(root), root, columns())))
        return Exit.DONE
    if os.name == "nt":
        os.system("")
    try:
        sys.stdout.write(HOME + CLEAR_BELOW)
        while True:
            lines = table(look(root), root, columns())[: max(3, shutil.get_terminal_size().lines - 1)]
            sys.stdout.write(HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in lines) + CLEAR_BELOW)
            sys.stdout.flush()
            time.sleep(every)
    except KeyboardInterrupt:  # the usual way out
        return Exit.DONE


def columns() -> int:
    return shutil.get_terminal_size((110, 24)).columns


def look(root: Path) -> list[Glance]:
    """Every run, those that train first, then the newest."""
    found = [glance(path) for path in runs_in(root)[:MOST]]
    return sorted(found, key=lambda one: STATES.index(one.state))


def table(found: Sequence[Glance], root: Path, width: int) -> list[str]:
    if not found:
        return [f"No runs in {one_line(str(root))}. `ambidex train` makes one."]
    rows = [HEAD, *(cells(one, root) for one in found)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(HEAD))]
    rest = sum(widths[1:]) + 2 * (len(HEAD) - 1)
    widths[0] = min(widths[0], max(12, width - rest))
    alive = sum(one.alive for one in found)
    lines = [_line(row, widths) for row in rows]
    return [
        *lines,
        "",
        f"{len(found)} run{'s' * (len(found) != 1)} in {one_line(str(root))}, {alive} training",
    ]


def cells(one: Glance, root: Path) -> tuple[str, ...]:
    """One line: what is not known is a dash, never a guess."""
    name = one_line(one.path.resolve().name if one.path == root else str(one.path.relative_to(root)))
    if one.broken:
        return name, one.state, "-", "-", "-", "-", "-"
    last = one.tail[-1] if one.tail else None
    speed = statistics.median(row.tokens_per_second for row in one.tail[-16:]) if one.tail else math.nan
    return (
        name, one.state, f"{one.step:,} / {one.steps:,}" if one.steps is not None else f"{one.step:,}",
        f"{last.loss:.4f}" if last else "-", f"{speed:,.0f}" if math.isfinite(speed) else "-",
        "-" if one.seconds_left is None else spelled(one.seconds_left),
        "none" if one.last_checkpoint is None else f"step {one.last_checkpoint:,}",
    )  # fmt: skip


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    name = row[0] if len(row[0]) <= widths[0] else row[0][: widths[0] - 3] + "..."
    first = [name.ljust(widths[0]), row[1].ljust(widths[1])]
    return "  ".join(
        [*first, *(cell.rjust(width) for cell, width in zip(row[LEFT_ALIGNED:], widths[LEFT_ALIGNED:]))]
    ).rstrip()


def spelled(seconds: float) -> str:
    """1h 05m, 3m 20s, 12s."""
    if not seconds < 1e9:
        return "-"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {rest:02}s" if minutes else f"{rest}s"
