"""Two recordings laid side by side: for every tensor that both have, its error, its floor, and their ratio."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ambidex.compare.fingerprint import STATISTICS, Floats, errors
from ambidex.compare.tracefile import BY_BF16, Key, Leg, Table, Trace

LEAST = 2.0**-24  # half a unit in the last place of fp32: no floor is below it
TOO_HIGH = 0.05  # a floor above it says that nothing is left to judge
EXACT = frozenset({"tokens", "targets", "weight"})  # the same bytes in, or not the same run
SCALARS = frozenset({"loss", "norm"})
SCALAR_MARGIN = 2.0  # a difference of two numbers can be small by luck, so one number's floor is taken twice
SCALAR_LEAST = 4 * LEAST  # a sum of many terms, which another kernel may add in fp32 and this one in fp64
LANES = 8  # sums side by side in a kernel that adds fp32 in fp32, as torch's norm does on a CPU
BORROWED = 2.0  # how far the candidate's own floor may raise the reference's
NEAR, DIFFERENT = 3.0, 6.0  # docs/compare.md has the figures that show them right
EXACT_ENOUGH = ("fp32", "fp64", BY_BF16)  # in lower precisions a plain update is not judged, see below


@dataclass(frozen=True)
class View:
    """One leg of a run against the reference's. Arrays have one entry a key, in the reference's order of execution."""

    leg: Leg
    keys: list[Key]
    error: Floats
    floor: Floats  # NaN where none was measured
    ratio: Floats  # 0 where not judged
    reference: Table
    candidate: Table
    rows: list[tuple[int, int]]  # of each key in the two tables
    unmatched: int  # rows that only one of the two has
    unlike: tuple[str, ...] = ()  # data of another size in all since the batch was cut up otherwise

    @property
    def limit(self) -> float:
        return DIFFERENT

    def steps(self) -> list[int]:
        return sorted({key.step for key in self.keys})

    def compared(self) -> bool:
        """Whether anything was judged by a floor, or nothing needs one since every bit is equal."""
        exact = np.array([key.kind in EXACT for key in self.keys], dtype=bool)
        return bool(
            ((self.floor <= TOO_HIGH) & ~exact).any() or (not exact.all() and (self.error == 0).all())
        )

    def at(self, step: int) -> Iterator[int]:
        return (n for n, key in enumerate(self.keys) if key.step == step)

    def dirty(self, number: int) -> bool:
        """Whether this tensor is different: above its limit, or not bit-equal where bits are what is asked."""
        if self.keys[number].kind in EXACT:
            return bool(self.error[number] > 0)
        return bool(self.ratio[number] > self.limit)

    def find(self, step: int, kind: str, name: str) -> int | None:
        return self._numbers().get(Key(step, kind, name))

    def _numbers(self) -> dict[Key, int]:
        if not hasattr(self, "_by_key"):
            object.__setattr__(self, "_by_key", {key: n for n, key in enumerate(self.keys)})
        found: dict[Key, int] = getattr(self, "_by_key")  # noqa: B009
        return found


def view(
    leg: Leg, reference: Table, candidate: Table, cut: Collection[str] = (), unlike: Collection[str] = ()
) -> View:
    """``cut`` and ``unlike``: tensors, as "KIND NAME", that the two runs took down in other pieces."""
    cut = {*cut, *unlike}
    keys = [k for k in reference.keys if k in candidate.row and f"{k.kind} {k.name}" not in cut]
    rows = [(reference.row[key], candidate.row[key]) for key in keys]
    mine, theirs = [a for a, _ in rows], [b for _, b in rows]
    error = errors(reference.sums[mine], candidate.sums[theirs], reference.norms[mine])
    for column in ("elements", "not_finite"):
        place = STATISTICS.index(column)
        error = np.where(
            reference.statistics[mine, place] == candidate.statistics[theirs, place], error, np.inf
        )
    elements = reference.statistics[mine, STATISTICS.index("elements")]
    floor = np.maximum(
        _floor(keys, reference.floor[mine], candidate.floor[theirs]), _of_norms(keys, elements)
    )  # NaN stays
    judged = (floor <= TOO_HIGH) & np.array([_is_judged(leg, key) for key in keys], dtype=bool)
    ratio = np.where(judged, error / np.fmax(floor, LEAST), 0.0)
    apart = tuple(one for one in unlike if any(f"{k.kind} {k.name}" == one for k in reference.keys))
    said = sum(f"{k.kind} {k.name}" in apart for k in (*reference.keys, *candidate.keys))
    unmatched = len(reference.keys) + len(candidate.keys) - 2 * len(keys) - said
    return View(leg, keys, error, floor, ratio, reference, candidate, rows, unmatched, apart)


def _floor(keys: list[Key], reference: Floats, candidate: Floats) -> Floats:
    """The reference's floor, raised a little where the candidate measured a higher one.

    Not the larger of the two: a run that computes in too low a precision has a high floor of its own, and must not be
    excused by it.
    """
    raised = np.fmax(
        reference, np.minimum(candidate, BORROWED * reference)
    )  # fmax: the reference's where that is NaN
    floor = np.where(np.isnan(reference), candidate, raised)
    scalar = np.array([key.kind in SCALARS for key in keys], dtype=bool)
    exact = np.array([key.kind in EXACT for key in keys], dtype=bool)
    floor = np.where(scalar & ~np.isnan(floor), np.fmax(SCALAR_MARGIN * floor, SCALAR_LEAST), floor)
    return np.where(exact, LEAST, np.where(np.isnan(floor), floor, np.fmax(floor, LEAST)))


def _of_norms(keys: list[Key], elements: Floats) -> Floats:
    """What the rounding of n additions, each half a unit in the last place at most, is likely to make of a norm.

    The reference adds squares in fp64, and its other roundings cannot show what a loop with torch's ``clip_grad_norm_``
    makes of the largest tensor. What is clipped by such a norm is judged by its own floor all the same.
    """
    largest: dict[int, float] = {}
    for key, count in zip(keys, elements):
        if key.kind == "gradient":
            largest[key.step] = max(float(count), largest.get(key.step, 0.0))
    likely = [
        LEAST * math.sqrt(largest.get(key.step, 0.0) / LANES) if key.kind == "norm" else 0.0 for key in keys
    ]
    return np.array(likely, dtype=np.float64)


def _is_judged(leg: Leg, key: Key) -> bool:
    """In low precision an element next to zero may turn its sign, and with it AdamW's update: the steady one is judged."""
    low = leg.precision not in EXACT_ENOUGH
    return not (low and key.kind == "update")


def _cut(mine: Mapping[str, list[int]], theirs: Mapping[str, list[int]]) -> set[str]:
    """Tensors whose first dimension is not the batch, so that other micro-batches give them another shape in all."""
    return {
        name
        for name, shape in mine.items()
        if name in theirs and math.prod(shape) == math.prod(theirs[name]) and shape[:1] != theirs[name][:1]
    }


def _by_each_piece(reference: Trace, run: Trace) -> set[str]:
    """Tensors that every micro-batch makes anew whatever its size, such as embedded positions: as often as there are some."""
    return {
        name for name in _by_micro_batches(reference, run) if _piece(reference, name) == _piece(run, name)
    }


def _unlike(reference: Trace, run: Trace) -> list[str]:
    """Data that is neither rows of the batch nor the same for each micro-batch, such as the borders of packed sequences,
    one more than there are sequences: of another size in all, so that nothing can be laid side by side."""
    return sorted(
        name
        for name in _by_micro_batches(reference, run)
        if name.startswith("tokens ")
        and math.prod(reference.shapes[name]) != math.prod(run.shapes[name])
        and _piece(reference, name) != _piece(run, name)
    )


def _by_micro_batches(reference: Trace, run: Trace) -> set[str]:
    """Tensors of other counts of pieces in two runs that cut the same batch into other micro-batches."""
    mine, theirs = reference.pieces, run.pieces
    both = mine.keys() & theirs.keys() & reference.shapes.keys() & run.shapes.keys()
    others = {name for name in both if mine[name] != theirs[name]}
    # Outputs too: of a model that is given all by keyword only what is exact is recorded.
    rows = (name for name in others if name.startswith(("tokens ", "output ")))
    same_batch = any(reference.shapes[name] == run.shapes[name] for name in rows)
    return others if same_batch else set()  # else it is not by micro-batches that they differ


def _piece(trace: Trace, name: str) -> tuple[float, ...]:
    rows, *rest = trace.shapes[name] or [1]
    return (rows / max(1, trace.pieces[name]), *rest)


def views(reference: Trace, run: Trace) -> list[View]:
    """Every leg that the two have in common and that started from the same numbers."""
    same_origin = run.origin in (reference.identity, reference.origin)
    cut = _cut(reference.shapes, run.shapes) | _by_each_piece(reference, run)
    unlike = _unlike(reference, run)
    found = []
    for leg, table in run.legs.items():
        if leg.mode == "free":
            other = reference.legs.get(leg)
        elif same_origin or (leg.start == 0 and leg.mode == "state"):  # the first weights are everybody's
            other = reference.legs.get(Leg("state", leg.start, leg.precision))
        else:
            other = None
        if other is not None:
            found.append(view(leg, other, table, cut, unlike))
    return sorted(
        found,
        key=lambda v: (("fed", "state", "free").index(v.leg.mode), v.leg.precision != "fp32", v.leg.start),
    )
