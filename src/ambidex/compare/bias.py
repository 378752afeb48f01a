"""Whether a factor by which all updates are off is that of AdamW's bias correction (Kingma and Ba, 2015, section 3).

Left out, or counted from another step, it scales every update alike, as another learning rate does; but by a factor that
is known at each step. The betas are read off the trace: before the first step the moments are nothing, so after it they
are 1 - beta1 times the gradient and 1 - beta2 times its square.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ambidex.compare.align import View
from ambidex.compare.fingerprint import STATISTICS

ALIKE = 0.02  # of the distance of a factor from 1
MEAN, ELEMENTS = STATISTICS.index("mean"), STATISTICS.index("elements")


def betas_in(views: Iterable[View]) -> tuple[float, float] | None:
    """AdamW's two, of the reference; None where no step from the first weights with two moments was recorded."""
    for view in views:
        table = view.reference
        for key, row in table.row.items():
            if key.step or key.kind != "exp_avg":
                continue
            rows = [table.row.get(key._replace(kind=kind)) for kind in ("clipped", "exp_avg_sq")]
            if None in rows or not table.norms[rows[0]] > 0:
                continue
            gradient, squares = table.norms[rows[0]], table.statistics[rows[1]]
            return (
                1 - float(table.norms[row] / gradient),
                1 - float(squares[MEAN] * squares[ELEMENTS] / gradient**2),
            )
    return None


def is_bias_correction(factors: Mapping[int, float], betas: tuple[float, float] | None) -> bool:
    """Whether ``factors``, by step, are those of one way to get the correction wrong."""
    if betas is None or not all(0 < beta < 1 for beta in betas):
        return False

    def first(step: int) -> float:
        return 1 - betas[0] ** (step + 1)

    def second(step: int) -> float:
        return float((1 - betas[1] ** (step + 1)) ** 0.5)

    def whole(step: int) -> float:
        return second(step) / first(step)

    ways = (
        lambda step: 1 / whole(step),
        first,
        lambda step: 1 / second(step),
        lambda step: whole(step + 1) / whole(step),
        lambda step: whole(step - 1) / whole(step) if step else 1.0,
    )
    return any(
        all(abs(factor - way(step)) <= ALIKE * abs(way(step) - 1) + 1e-6 for step, factor in factors.items())
        for way in ways
    )
