"""The fingerprint of a tensor: a few statistics and 64 signed sums, small enough to mail, sharp enough to judge by.

Every element goes, with a sign, into one of 64 buckets; bucket and sign are decided by a hash of the element's place
in the whole tensor. The sums are linear in the tensor, so they add up over micro-batches and processes, and the L2
norm of a difference of two tensors is estimated from the difference of their sums (Charikar, Chen and Farach-Colton,
"Finding frequent items in data streams", 2002): right on average, with a standard deviation of 9 %. All in fp64,
since sums in fp32 would be as coarse as what they are to measure. numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BUCKETS = 64
STATISTICS = ("elements", "norm", "mean", "largest", "not_finite")
PIECE = 1 << 20  # elements that share one table; later pieces permute its buckets

Floats = NDArray[np.float64]


def _mix(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser (Steele, Lea and Flood, 2014): 64-bit integers to well-mixed ones, exact everywhere."""
    with np.errstate(over="ignore"):
        mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


_table: NDArray[np.intp] | None = None


def _places() -> NDArray[np.intp]:
    """Bucket and sign of the elements of a piece, as one number below 128: (PIECE,)."""
    global _table  # noqa: PLW0603  made once, on first use, since it takes 20 ms
    if _table is None:
        _table = (_mix(np.arange(PIECE, dtype=np.uint64)) >> np.uint64(57)).astype(np.intp)
    return _table


@lru_cache(maxsize=1024)
def _turn(piece: int) -> NDArray[np.intp]:
    """How the buckets and signs of piece number ``piece`` are permuted: (128,)."""
    number = _mix(np.array([piece + (1 << 40)], dtype=np.uint64))[0] >> np.uint64(57)
    return np.arange(2 * BUCKETS, dtype=np.intp) ^ (int(number) if piece else 0)


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of one tensor. ``sums`` is (64,) fp64; values that are not finite are counted and left out."""

    elements: int
    norm: float
    mean: float
    largest: float  # largest magnitude
    not_finite: int
    sums: Floats

    def statistics(self) -> list[float]:
        return [float(self.elements), self.norm, self.mean, self.largest, float(self.not_finite)]


class Sketch:
    """A fingerprint under way: parts of a tensor may be added in any order and by any split."""

    def __init__(self) -> None:
        self.elements = 0
        self._squares = self._total = self._largest = 0.0
        self._not_finite = 0
        self._sums = np.zeros(2 * BUCKETS)

    def add(self, values: NDArray[Any], start: int, factor: float = 1.0) -> None:
        """Take in ``factor`` times a run of consecutive elements, of which the first is element number ``start``."""
        flat = values.reshape(-1)
        self.elements += flat.size
        done = 0
        while done < flat.size:
            piece, inside = divmod(start + done, PIECE)
            part = flat[done : done + PIECE - inside].astype(np.float64) * factor
            finite = np.isfinite(part)
            if not finite.all():
                self._not_finite += int(part.size - finite.sum())
                part[~finite] = 0.0
            self._squares += float(part @ part)
            self._total += float(part.sum())
            self._largest = max(self._largest, float(part.max()), -float(part.min()))
            places = _places()[inside : inside + part.size]
            self._sums += np.bincount(places, weights=part, minlength=2 * BUCKETS)[_turn(piece)]
            done += part.size

    def numbers(self) -> Floats:
        """All that has been taken in: (133,)."""
        few = [self._largest, self.elements, self._squares, self._total, self._not_finite]
        return np.concatenate([np.array(few, dtype=np.float64), self._sums])

    @classmethod
    def of_parts(cls, parts: Floats) -> Sketch:
        """One of a tensor of which others hold a part each, by their ``numbers()``: (N, 133)."""
        whole = cls()
        whole._largest = float(parts[:, 0].max())
        elements, whole._squares, whole._total, not_finite = map(float, parts[:, 1:5].sum(axis=0))
        whole.elements, whole._not_finite = int(elements), int(not_finite)
        whole._sums = parts[:, 5:].sum(axis=0)
        return whole

    def fingerprint(self) -> Fingerprint:
        sums = self._sums[:BUCKETS] - self._sums[BUCKETS:]
        mean = self._total / self.elements if self.elements else 0.0
        return Fingerprint(self.elements, self._squares**0.5, mean, self._largest, self._not_finite, sums)


def fingerprint(values: NDArray[Any]) -> Fingerprint:
    """Of a whole tensor."""
    sketch = Sketch()
    sketch.add(values, 0)
    return sketch.fingerprint()


def errors(reference: Floats, candidate: Floats, norms: Floats) -> Floats:
    """Estimated relative L2 differences of many tensors: sums (N, 64) each, the reference's norms (N,) -> (N,).

    Nothing against nothing is 0; something against nothing is infinite.
    """
    with np.errstate(
        divide="ignore", invalid="ignore", over="ignore"
    ):  # what is read may hold any finite numbers
        apart: Floats = np.sqrt(np.square(candidate - reference).sum(axis=1))
        relative = apart / norms
    return np.where(apart == 0, 0.0, np.where(norms > 0, relative, np.inf))


def factors(reference: Floats, candidate: Floats) -> tuple[Floats, Floats]:
    """The best a in candidate = a * reference + rest, and the size of that rest over the reference's: (N,), (N,)."""
    with np.errstate(invalid="ignore", over="ignore"):
        inner = np.square(reference).sum(axis=1)
        safe = np.where(inner > 0, inner, 1.0)
        scale = (reference * candidate).sum(axis=1) / safe
        rest = np.sqrt(np.square(candidate - scale[:, None] * reference).sum(axis=1) / safe)
    return scale, rest
