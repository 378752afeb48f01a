"""Blocks that join late: a run's first steps compute the first few blocks alone, which costs as much less.

What the others add to the residual stream is exactly 0 until they join, so at every step the whole model computes what
its first blocks alone do. Chen et al., "Net2Net", 2016, keep the function as well; Bu, "Deep progressive training:
scaling up depth capacity of zero/one-layer models", 2025, has all the others join at once, late, before the rate falls.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Growth:
    """``first`` of ``layers`` blocks compute until ``step`` updates are done, and then all of them."""

    first: int
    layers: int
    step: int

    @classmethod
    def of(cls, first: int, layers: int, steps: int, at: float) -> Growth:
        """As the settings say it: 0 for ``first`` is all; those that wait join after that part of the steps, for the
        last one at the latest."""
        first = first or layers
        return cls(first, layers, min(round(steps * at), steps - 1) if first < layers else 0)

    def depth_at(self, step: int) -> int:
        """Blocks that compute in update number ``step``, counted from 0."""
        return self.first if step < self.step else self.layers

    def mean_depth(self, steps: int) -> float:
        """The mean of that over the first ``steps`` updates."""
        waited = min(steps, self.step)
        return (waited * self.first + (steps - waited) * self.layers) / max(1, steps)
