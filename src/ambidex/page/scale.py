"""From numbers to places on an axis, and the ticks that a person would choose. Any finite number is safe here."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

LARGEST = 1e30  # what lies beyond is drawn at the edge
SMALLEST = 1e-30
Tick = tuple[float, str]


@dataclass(frozen=True)
class Scale:
    """``low`` to ``high`` become 0 to 1."""

    label: str
    low: float
    high: float
    ticks: tuple[Tick, ...]
    log: bool = False

    def at(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        if self.log:
            value = math.log10(max(value, SMALLEST)) if value < math.inf else math.inf
        return min(1.0, max(0.0, (value - low) / (high - low)))


def usable(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value) and abs(value) <= LARGEST]


def linear(label: str, values: Iterable[float], *, from_zero: bool = False) -> Scale:
    found = usable(values)
    low, high = min(found, default=0.0), max(found, default=1.0)
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= max(1e-12 * max(abs(low), abs(high)), SMALLEST):
        room = 0.01 * max(abs(low), abs(high)) or 1.0
        low, high = low - max(room, SMALLEST), high + max(room, SMALLEST)
    step = nice((high - low) / 5)
    first = math.floor(low / step) if from_zero or (low % step) < 0.35 * step else math.ceil(low / step)
    low = min(low, first * step)
    count = math.ceil((high - first * step) / step - 1e-9) + 1
    ticks = [(first + n) * step for n in range(min(count, 20))]
    if ticks[-1] - high > 0.5 * step and len(ticks) > 2:  # half a step of room is enough
        ticks.pop()
        high += 0.05 * step
    return Scale(label, low, max(high, ticks[-1]), tuple((tick, number(tick, step)) for tick in ticks))


def nice(width: float) -> float:
    """1, 2 or 5 times a power of ten, not below ``width``."""
    power = 10.0 ** math.floor(math.log10(max(width, 1e-300)))
    return next((times * power for times in (1, 2, 5) if times * power >= width * 0.999), 10 * power)


def logarithmic(label: str, values: Iterable[float], *, at_least: tuple[float, float] | None = None) -> Scale:
    found = [value for value in usable(values) if value >= SMALLEST]
    if at_least:
        found += at_least
    low, high = min(found, default=0.1), max(found, default=10.0)
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    last = max(last, first + 1)
    every = max(1, math.ceil((last - first) / 6))
    ticks = tuple((10.0**n, power(n)) for n in range(first, last + 1, every))
    return Scale(label, 10.0**first, 10.0**last, ticks, log=True)


def categories(label: str, names: Sequence[str], most: int = 14) -> Scale:
    """Places 0, 1, 2, ... with a name each; where there are many, every second or third is named."""
    every = max(1, math.ceil(len(names) / most))
    ticks = tuple((float(n), names[n]) for n in range(0, len(names), every))
    return Scale(label, -0.5, max(0.5, len(names) - 0.5), ticks)


def number(value: float, step: float = 0.0) -> str:
    """A tick: no more digits than the step between ticks asks for, and thousands as k, M, G."""
    value = 0.0 if abs(value) < 1e-12 * abs(step) else value
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size and abs(value) < 1e13 and (value / size * 10) % 1 < 1e-9:
            return f"{value / size:g}{letter}"
    return f"{value:.6g}"


def power(exponent: int) -> str:
    return f"{10.0**exponent:g}" if -3 <= exponent <= 4 else f"1e{exponent}"
