"""Reading a run folder without torch: its card, its metrics and its trace. What is read is not trusted."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from ambidex.cardfile import CARD, read_card
from ambidex.compare import tracefile
from ambidex.compare.tracefile import Trace
from ambidex.files import open_plain

LONGEST_ROW = 1 << 12  # characters


@dataclass(frozen=True)
class Row:
    """What `compare` needs of a line of metrics.csv."""

    step: int  # updates done
    loss: float
    rate: float
    norm: float


@dataclass(frozen=True)
class Folder:
    """A run as `compare` sees it."""

    path: Path
    card: dict[str, Any]
    rows: list[Row]
    trace: Trace | None

    @property
    def name(self) -> str:
        return self.path.name or str(self.path)


def holds_run(path: Path) -> bool:
    return os.path.isfile(path / CARD)  # noqa: PTH113  no error for a name that is too long


def read(path: Path) -> Folder:
    """Raises Problems (exit 3) where there is no run, or where its card or trace cannot be understood."""
    card = read_card(path)
    file = path / tracefile.TRACE
    return Folder(
        path,
        card,
        read_metrics(path / "metrics.csv"),
        tracefile.read(file) if os.path.lexists(file) else None,
    )


def read_metrics(path: Path) -> list[Row]:
    """Rows up to the first that is none: a run under way may have written half a line."""
    rows: list[Row] = []
    try:
        with io.TextIOWrapper(io.BufferedReader(open_plain(path)), "utf-8", newline="") as file:
            # An empty line ends it too: a reader of CSV passes over any number of them.
            lines = takewhile(str.strip, iter(lambda: file.readline(LONGEST_ROW), ""))
            for cells in csv.DictReader(lines):
                row = Row(
                    int(cells["step"]), float(cells["loss"]), float(cells["lr"]), float(cells["grad_norm"])
                )
                if not math.isfinite(
                    row.rate
                ):  # loss and norm may be infinite: such a step is left out, and training goes on
                    break
                rows.append(row)
    except (OSError, csv.Error, KeyError, ValueError, TypeError):
        return rows
    return rows
