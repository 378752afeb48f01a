"""trace.safetensors: the fingerprints of a run at its probe steps, with their floor. Read without torch, never trusted.

One row a tensor: ``statistics`` (N, 5) and ``sums`` (N, 64), both fp64, ``floor`` (N,) fp64 with NaN where none was
measured, and ``index``, the bytes of a JSON text that says what each row is. No pickle.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ambidex.cardfile import NewerFormat
from ambidex.compare.fingerprint import BUCKETS, STATISTICS, Fingerprint, Floats
from ambidex.errors import Exit, Problem, Problems
from ambidex.files import read_small

TRACE = "trace.safetensors"
FORMAT = 1
LONGEST_NAME = 4000  # characters, of a module or a parameter
LONGEST_TEXT = LONGEST_NAME + 96  # with its kind before it and a number behind it
LARGEST = 1 << 30  # bytes; a trace of 45 M parameters takes a few million
MOST_RATES = 100_000  # learning rates of a loop, of all its groups: two megabytes, whatever its length
MODES = ("free", "state", "fed")
AGAIN = "#"  # between a module's name and the number of what it put out, from 2
BY_BF16 = "fp32 by bf16's code"  # fp32 numbers through the functions that a bf16 step calls
PRECISIONS = ("fp32", "bf16", "fp16", "fp64", BY_BF16)


class Leg(NamedTuple):
    """How a recording was made: its mode, the step from which it starts, and the precision it computed in."""

    mode: str
    start: int
    precision: str


class Key(NamedTuple):
    """One recorded tensor. ``step`` counts updates from 0; ``kind`` is what of ``name`` was recorded."""

    step: int
    kind: str
    name: str


Record = dict[Key, Fingerprint]  # in the order of recording, which is the order of execution


@dataclass
class Table:
    """A leg's recording as arrays, one row a key; rows stand in the order of recording."""

    keys: list[Key]
    statistics: Floats  # (N, 5)
    sums: Floats  # (N, 64)
    floor: Floats  # (N,) relative, NaN where not measured

    def __post_init__(self) -> None:
        self.row = {key: number for number, key in enumerate(self.keys)}

    @property
    def norms(self) -> Floats:
        return self.statistics[:, STATISTICS.index("norm")]

    @classmethod
    def of(cls, record: Mapping[Key, Fingerprint]) -> Table:
        prints = list(record.values())
        return cls(
            list(record),
            np.array([p.statistics() for p in prints], dtype=np.float64).reshape(-1, len(STATISTICS)),
            np.array([p.sums for p in prints], dtype=np.float64).reshape(-1, BUCKETS),
            np.full(len(prints), np.nan),
        )

    def only(self, rows: Iterable[int]) -> Table:
        chosen = list(rows)
        return Table(
            [self.keys[n] for n in chosen], self.statistics[chosen], self.sums[chosen], self.floor[chosen]
        )

    def followed_by(self, later: Table) -> Table:
        return Table(
            self.keys + later.keys,
            np.concatenate([self.statistics, later.statistics]),
            np.concatenate([self.sums, later.sums]),
            np.concatenate([self.floor, later.floor]),
        )


@dataclass
class Trace:
    """All of a run's recordings. ``origin`` names the run whose states the state and fed legs started from."""

    identity: str  # what other traces name this one by
    origin: str
    precision: str
    legs: dict[Leg, Table] = field(default_factory=dict)
    feeds: dict[str, list[str]] = field(default_factory=dict)  # a module, and those that read its output
    shapes: dict[str, list[int]] = field(default_factory=dict)  # "KIND NAME" -> shape of the whole tensor
    floor_legs: list[str] = field(default_factory=list)  # what the floor was measured with
    losses: dict[str, list[float]] = field(default_factory=dict)  # of other roundings, a step each
    pieces: dict[str, int] = field(
        default_factory=dict
    )  # of ``shapes``: how many parts each was added up from
    rates: list[list[float]] = field(
        default_factory=list
    )  # a step each, by group of parameters: of somebody's own loop


def write(trace: Trace) -> bytes:
    """The bytes of a trace file."""
    tables = list(trace.legs.values())
    index = {
        "format": FORMAT, "identity": trace.identity, "origin": trace.origin, "precision": trace.precision,
        "legs": [{**leg._asdict(), "rows": [list(key) for key in table.keys]} for leg, table in trace.legs.items()],
        "feeds": trace.feeds, "shapes": trace.shapes, "floor_legs": trace.floor_legs,
        "losses": trace.losses, "pieces": trace.pieces, "rates": trace.rates,
    }  # fmt: skip
    arrays = {
        "index": np.frombuffer(json.dumps(index, separators=(",", ":")).encode(), dtype=np.uint8),
        "statistics": np.concatenate([t.statistics for t in tables] or [np.zeros((0, len(STATISTICS)))]),
        "sums": np.concatenate([t.sums for t in tables] or [np.zeros((0, BUCKETS))]),
        "floor": np.concatenate([t.floor for t in tables] or [np.zeros(0)]),
    }
    return save(arrays, {"format": f"ambidex trace {FORMAT}"})


def read(path: Path) -> Trace:
    """The trace at ``path``. Raises Problems (exit 3) with a sentence for whatever is not one that we wrote."""
    try:
        return parse(read_small(path, LARGEST))
    except OSError as error:
        found = f"{path}: {error.strerror or error}"
    except NewerFormat as error:
        raise Problems(
            Problem("The trace is of a newer format.", found=f"{path}: {error}", wanted=f"format {FORMAT}, which this ambidex knows",
                    fix="python -m pip install --upgrade ambidex"), Exit.DATA,
        ) from None  # fmt: skip
    except (
        SafetensorError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        OverflowError,
    ) as error:
        found = f"{path}: {_short(error)}"
    raise Problems(
        Problem("The trace cannot be read.", found=found, wanted=f"a trace of format {FORMAT}, written by ambidex train --trace",
                fix="train again with --trace, or copy the file again"), Exit.DATA,
    )  # fmt: skip


def parse(content: bytes) -> Trace:
    """Raises ValueError, KeyError, TypeError or SafetensorError for anything that is no trace."""
    arrays = load(content)
    for name, kind, width in (("index", np.uint8, None), ("statistics", np.float64, len(STATISTICS)),
                              ("sums", np.float64, BUCKETS), ("floor", np.float64, None)):  # fmt: skip
        array = arrays[name]
        if (
            array.dtype != kind
            or array.ndim != (1 if width is None else 2)
            or (width and array.shape[1] != width)
        ):
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
    index = json.loads(arrays["index"].tobytes())
    if not isinstance(index, dict) or not isinstance(index.get("format"), int):
        raise ValueError("it does not say its format")
    if index["format"] > FORMAT:
        raise NewerFormat(f"format {index['format']}")
    if index["format"] != FORMAT:
        raise ValueError(f"format {index['format']} instead of {FORMAT}")
    trace = Trace(
        _text(index["identity"]), _text(index["origin"]), _one_of(index["precision"], PRECISIONS),
        feeds={_text(name): [_text(n) for n in names] for name, names in index["feeds"].items()},
        shapes={_text(name): [_count(n) for n in shape] for name, shape in index["shapes"].items()},
        floor_legs=[_text(name) for name in index["floor_legs"]],
        losses={_text(name): [_loss(n) for n in some] for name, some in index.get("losses", {}).items()},
        pieces={_text(name): _count(n) for name, n in index.get("pieces", {}).items()},
        rates=[[_loss(n) for n in some] for some in index.get("rates", [])],
    )  # fmt: skip
    first = 0
    for described in index["legs"]:
        leg = Leg(
            _one_of(described["mode"], MODES),
            _count(described["start"]),
            _one_of(described["precision"], PRECISIONS),
        )
        keys = [Key(_count(step), _text(kind), _text(name)) for step, kind, name in described["rows"]]
        rows = slice(first, first + len(keys))
        table = Table(keys, arrays["statistics"][rows], arrays["sums"][rows], arrays["floor"][rows])
        if (
            len(table.floor) != len(keys)
            or len(table.sums) != len(keys)
            or len(table.statistics) != len(keys)
        ):
            raise ValueError("it names more rows than it holds")
        if len(table.row) != len(keys) or leg in trace.legs:
            raise ValueError("it names a row twice")
        _check_numbers(table)
        trace.legs[leg] = table
        first += len(keys)
    if not first == len(arrays["floor"]) == len(arrays["sums"]) == len(arrays["statistics"]):
        raise ValueError("it holds more rows than it names")
    return trace


def _check_numbers(table: Table) -> None:
    """What fingerprint.py makes is finite and not negative where it cannot be."""
    if not (np.isfinite(table.sums).all() and np.isfinite(table.statistics).all()):
        raise ValueError("a sum or a statistic is not finite")
    if (table.statistics[:, [0, 1, 3, 4]] < 0).any() or (table.floor < 0).any():
        raise ValueError("a norm, a count or a floor is negative")


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        raise ValueError("a name is no text, or too long a one")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 62:
        raise ValueError("a count is no whole number")
    return value


def _loss(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError("a loss is no number")
    return float(value)


def _one_of(value: Any, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{value!r:.40} instead of one of {', '.join(known)}")
    return str(value)


def _short(error: BaseException) -> str:
    text = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return f"it has no {text}" if isinstance(error, KeyError) else text


def floor_of(base: Table, others: Iterable[Table]) -> Floats:
    """For each row of ``base`` the largest relative difference that any of ``others`` has from it; NaN where none has it."""
    from ambidex.compare.fingerprint import errors

    floor: NDArray[np.float64] = np.full(len(base.keys), np.nan)
    for other in others:
        mine = [row for row, key in enumerate(base.keys) if key in other.row]
        theirs = [other.row[base.keys[row]] for row in mine]
        found = errors(base.sums[mine], other.sums[theirs], base.norms[mine])
        floor[mine] = np.fmax(floor[mine], found)
    return floor
