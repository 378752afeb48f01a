"""What a run will take: parameters, memory and time, before it starts. Estimates, and called so, with their terms."""

from __future__ import annotations

from dataclasses import dataclass

from ambidex.config import Settings
from ambidex.engine import Device
from ambidex.model import Shape

USUAL_SHARE = 0.4  # of a product's rate that a whole step reaches; docs/benchmarks.md has the measurements


@dataclass(frozen=True)
class Memory:
    """Bytes by part, beside what the interpreter and torch themselves take."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def shape_of(settings: Settings, vocabulary_size: int) -> Shape:
    s = settings
    return Shape(
        vocabulary_size, s.layers, s.width, s.heads, s.kv_heads, s.feed_forward, s.context,
        s.tied, s.rope_base, s.norm_epsilon,
    )  # fmt: skip


def memory(settings: Settings, shape: Shape, precision: str) -> Memory:
    """The largest that each part gets in a step.

    Activations are what backward needs of each block: its input, both norms' outputs, queries, keys and values before
    and after norm and rotation, the mixed values, gate, up and their product; half of them in the low precision where
    one is used. The loss holds fp32 logits, their log-softmax and a gradient.
    """
    parameters = sum(shape.parameters().values())
    tokens = (settings.micro_batch_size or settings.batch_size) * settings.context
    low = 4 if precision == "fp32" else 2
    kv_width = shape.kv_heads * shape.head_width
    wide = 4 * 4 * shape.width  # residual stream twice, norms' inputs: fp32 in every precision
    narrow = low * (6 * shape.width + 6 * kv_width + 4 * shape.feed_forward)
    moments = 2 if settings.optimizer == "adamw" else 1
    return Memory(
        {
            "weights": 4 * parameters,
            "gradients": 4 * parameters,
            "optimizer": 4 * moments * parameters,
            "activations": shape.layers * tokens * (wide + narrow),
            "loss": tokens * shape.vocabulary_size * (8 + low),
        }
    )


@dataclass(frozen=True)
class Duration:
    """Seconds of a run and what they were reckoned from."""

    seconds: float
    operations: float
    rate: float  # measured operations per second of one product

    def __str__(self) -> str:
        return (
            f"about {spell_seconds(self.seconds)} (an estimate: {self.operations:.2g} operations at "
            f"{USUAL_SHARE:.0%} of the {self.rate / 1e9:,.0f} GFLOP/s that one matrix product reaches here)"
        )


def duration(settings: Settings, shape: Shape, device: Device) -> Duration:
    """Measure one product at the model's own shape for a quarter of a second and reckon from it."""
    rows = min(4096, (settings.micro_batch_size or settings.batch_size) * settings.context)
    rate = device.matmul_rate(rows, shape.width, shape.feed_forward)
    operations = float(shape.operations_per_token()) * settings.batch_size * settings.context * settings.steps
    return Duration(operations / (rate * USUAL_SHARE), operations, rate)


def spell_seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def spell_bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count:,.0f} bytes"
