"""metrics.csv: one row a step. Written by training, read by whatever shows a run; needs no torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

METRICS = "metrics.csv"
COLUMNS = ("step", "tokens", "loss", "val_loss", "lr", "grad_norm", "seconds", "tokens_per_second")
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
            step=int(cells["step"]),
            tokens=int(cells["tokens"]),
            loss=float(cells["loss"]),
            val_loss=float(cells["val_loss"]) if cells["val_loss"] else None,
            lr=float(cells["lr"]),
            grad_norm=float(cells["grad_norm"]),
            seconds=float(cells["seconds"]),
            tokens_per_second=float(cells["tokens_per_second"]),
        )


def read_metrics(path: Path) -> list[Row]:
    """Rows of a metrics file. A last line cut short by a kill is left out, since its step is trained again."""
    rows: list[Row] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for cells in csv.DictReader(file):
                try:
                    rows.append(Row.parse(cells))
                except (KeyError, ValueError, TypeError):
                    break
    except (OSError, UnicodeDecodeError, csv.Error):
        return rows
    return rows


def read_tail(path: Path) -> list[Row]:
    """The last whole rows, from the end of the file alone: a long run's is read every second."""
    try:
        with path.open("rb") as file:
            file.seek(0, io.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read(TAIL).decode("utf-8", "replace").split("\n")[:-1]
    except OSError:
        return []
    rows: list[Row] = []
    for line in lines:
        cells = line.rstrip("\r").split(",")
        if len(cells) == len(COLUMNS):
            with suppress(ValueError):  # the header, or the rest of a line of which the beginning is not read
                rows.append(Row.parse(dict(zip(COLUMNS, cells))))
    return rows


def render_rows(rows: Sequence[Row], *, header: bool) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header:
        writer.writerow(COLUMNS)
    writer.writerows(row.cells() for row in rows)
    return text.getvalue()
