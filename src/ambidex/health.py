"""A training's own health: what to do where a loss is no number, which losses are spikes, and a file that says so.

metrics.csv keeps its columns; ``health.jsonl`` beside it has one line for each step that was not as it should be.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ambidex.files import open_plain, replace_synced

HEALTH = "health.jsonl"
MOST_SKIPPED = 20  # steps in a row: after so many a run is lost, whatever the policy
LARGEST = 1 << 26  # bytes of the file that are read back
WINDOW, FEWEST = 24, 12  # losses that a new one is held against, and how many there must be
DEVIATIONS, LEAST_RISE = 6.0, 0.1  # robust deviations above the median, and nats, that make a spike


class Spikes:
    """Finds losses that stand out above those just before them. The same losses give the same answers."""

    def __init__(self) -> None:
        self._before: deque[float] = deque(maxlen=WINDOW)

    def is_spike(self, loss: float) -> bool:
        """Whether ``loss`` (nats per token) is one; NaN is none and is not remembered."""
        if math.isnan(loss):
            return False
        if len(self._before) >= FEWEST:
            middle = statistics.median(self._before)
            # The median of absolute deviations times 1.4826 is a normal distribution's standard deviation.
            spread = 1.4826 * statistics.median(abs(one - middle) for one in self._before)
            if loss > middle + max(LEAST_RISE, DEVIATIONS * spread):
                self._before.append(loss)
                return True
        self._before.append(loss)
        return False

    @classmethod
    def after(cls, losses: Iterable[float]) -> Spikes:
        """As it stands after these losses, oldest first."""
        spikes = cls()
        for loss in losses:
            spikes.is_spike(loss)
        return spikes


def spike_steps(losses: Sequence[tuple[int, float]]) -> list[int]:
    """The steps of (step, loss), oldest first, whose loss is a spike."""
    spikes = Spikes()
    return [step for step, loss in losses if spikes.is_spike(loss)]


def record(run: Path, kind: str, step: int, loss: float, norm: float, starts: Sequence[int]) -> None:
    """Add a line: ``kind`` is skipped, stopped or spike; ``starts`` say which tokens each sequence began at.

    Raises OSError where it cannot be written.
    """
    entry = {
        "step": step,
        "kind": kind,
        "loss": repr(loss),
        "grad_norm": repr(norm),
        "sequences_start_at": list(starts),
    }
    with (run / HEALTH).open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(entry) + "\n")


def recorded(run: Path) -> list[dict[str, Any]]:
    """The lines so far, up to the first that is none."""
    entries: list[dict[str, Any]] = []
    try:
        with open_plain(run / HEALTH) as file:
            text = file.read(LARGEST).decode("utf-8", "replace")
    except (OSError, ValueError):
        return entries
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            entries.append({**entry, "step": int(entry["step"]), "kind": str(entry["kind"])})
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            break
    return entries


def cut_back(run: Path, step: int) -> None:
    """Drop what came after ``step``: a resumed run sees those steps again. Raises OSError."""
    if not os.path.lexists(run / HEALTH):  # a link to nowhere is replaced as well, not written through
        return
    kept = [entry for entry in recorded(run) if entry["step"] <= step]
    replace_synced(run / HEALTH, "".join(json.dumps(entry) + "\n" for entry in kept).encode())
