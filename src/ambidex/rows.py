"""metrics.csv: one row a step. Written by training, read by whatever shows a run; needs no torch."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ambidex.errors import Exit, Problem, Problems
from ambidex.files import open_plain

METRICS = "metrics.csv"
COLUMNS = ("step", "tokens", "loss", "val_loss", "lr", "grad_norm", "seconds", "tokens_per_second")
LARGEST = 1 << 30  # bytes; a million steps take a tenth of it
LONGEST_ROW = 1 << 12  # characters
MOST_WRONG = (
    10_000  # lines that are no rows: after so many the file is none of ours, and could be read for ever
)
TAIL = 4096  # bytes; a row takes about 120


@dataclass(frozen=True)
class Row:
    """One step. ``tokens`` and ``seconds`` count from the run's start; ``val_loss`` is None where not evaluated."""

    step: int
    tokens: int
    loss: float  # nats per token
    val_loss: float | None
    lr: float
    grad_norm: float
    seconds: float
    tokens_per_second: float

    def cells(self) -> list[str]:
        return ["" if value is None else repr(value) for value in (getattr(self, name) for name in COLUMNS)]

    @classmethod
    def parse(cls, cells: Mapping[str, str]) -> Row:
        """Raises ValueError or KeyError for anything that is no row of ours."""
        return cls(
            step=_count(cells["step"]),
            tokens=_count(cells["tokens"]),
            loss=float(cells["loss"]),
            val_loss=float(cells["val_loss"]) if cells["val_loss"] else None,
            lr=float(cells["lr"]),
            grad_norm=float(cells["grad_norm"]),
            seconds=float(cells["seconds"]),
            tokens_per_second=float(cells["tokens_per_second"]),
        )


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number < 1 << 63:
        raise ValueError("no count of ours")
    return number


def read_metrics(path: Path) -> list[Row]:
    """Rows of a metrics file, as far as it can be read. A line that is none of ours is passed over: the last one, cut
    short by a kill, is trained again, and a damaged one is missed by `Run.cut_back`."""
    rows: list[Row] = []
    try:
        with io.TextIOWrapper(io.BufferedReader(open_plain(path)), "utf-8", "replace", newline="") as file:
            if os.fstat(file.fileno()).st_size > LARGEST:
                raise _too_large(path)
            wrong = 0
            for line in iter(lambda: file.readline(LONGEST_ROW), ""):
                try:
                    rows.append(_parse(line))
                except ValueError:
                    wrong += 1
                    if wrong > MOST_WRONG:
                        break
    except (OSError, ValueError):
        return rows
    return rows


def _parse(line: str) -> Row:
    """Raises ValueError for the header, and for whatever is no row of ours."""
    cells = line.rstrip("\r\n").split(",")
    if len(cells) != len(COLUMNS):
        raise ValueError("no row of ours")
    return Row.parse(dict(zip(COLUMNS, cells)))


def _too_large(path: Path) -> Problems:
    return Problems(
        Problem(f"{METRICS} is too large to be read.", found=str(path), wanted=f"at most {LARGEST:,} bytes"),
        Exit.DATA,
    )


def read_tail(path: Path) -> list[Row]:
    """The last whole rows, from the end of the file alone: a long run's is read every second."""
    try:
        with open_plain(path) as file:
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read(TAIL).decode("utf-8", "replace").split("\n")[:-1]
    except (OSError, ValueError):
        return []
    rows: list[Row] = []
    for line in lines:
        with suppress(ValueError):  # the header, or the rest of a line of which the beginning is not read
            rows.append(_parse(line))
    return rows


def render_rows(rows: Sequence[Row], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()
