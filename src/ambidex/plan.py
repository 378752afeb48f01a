"""What a run will take: parameters, memory and time, before it starts. Estimates, and called so, with their terms."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ambidex.candidates import count
from ambidex.checkpoint import Wanted
from ambidex.config import Settings
from ambidex.derivatives import QUERIES
from ambidex.engine import Device
from ambidex.growth import Growth
from ambidex.model import LanguageModel, Shape
from ambidex.optim import Optimizer
from ambidex.text.batches import Batches

HOLES = 1.35  # glibc's aligned blocks leave holes that the next do not fit; measured by benchmarks/memory.py
SPARE = 1.15  # advice leaves this much room: no plan was further below what was measured (docs/guide.md)
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
        s.tied, s.rope_base, s.norm_epsilon, s.residual_init, s.ngrams, s.ngram_rows, s.grow_from,
    )  # fmt: skip


def growth_of(settings: Settings) -> Growth:
    """When the blocks of a run join: all of them for its last step at the latest."""
    return Growth.of(settings.grow_from, settings.layers, settings.steps, settings.grow_at)


@dataclass(frozen=True)
class Work:
    """What training computes of each token, in operations: less while blocks wait, and with a sampled softmax."""

    shape: Shape
    growth: Growth
    candidates: int

    def at(self, step: int) -> int:
        """In update number ``step``, counted from 0."""
        return self.shape.operations_per_token(self.growth.depth_at(step), self.candidates)

    def mean(self, steps: int) -> int:
        """On average over the first ``steps`` updates."""
        return self.shape.operations_per_token(self.growth.mean_depth(steps), self.candidates)


def work_of(settings: Settings, shape: Shape, batches: Batches) -> Work:
    return Work(shape, growth_of(settings), candidates_of(settings, shape, batches))


def candidates_of(settings: Settings, shape: Shape, batches: Batches) -> int:
    """Tokens that the softmax of the first batch runs over; those of other batches are about as many."""
    size, one_in = shape.vocabulary_size, settings.sampled_softmax
    return size if one_in == 1 else count(len(np.unique(batches.batch(0)[1])), size, one_in)


def memory(settings: Settings, shape: Shape, precision: str) -> Memory:
    """The largest that each part gets in a step, in bytes; `benchmarks/memory.py` holds it against real runs.

    Activations are what `model.py` keeps of each block for backward. In fp32 at every precision: input and normalised
    input of its four norms. At the run's precision: queries, keys and values as attention gets them, the inputs of
    its products (in low precision each product casts its own), attention's weights where a sequence is one block
    of them, gate, its SiLU, up, and their product. Backward adds some five gradients as wide as the feed-forward
    layer. The loss (`loss.py`) holds logits, log-softmax and gradient.
    """
    width, feed_forward, parameters = shape.width, shape.feed_forward, sum(shape.parameters().values())
    tokens = (settings.micro_batch_size or settings.batch_size) * settings.context
    low = 4 if precision == "fp32" else 2
    norms = 4 * (6 * width + 2 * shape.kv_heads * shape.head_width)
    products = low * (3 * width + (3 if low == 4 else 6) * width + 4 * feed_forward)
    if low == 2 and settings.context <= QUERIES:
        products += low * shape.heads * settings.context
    groups = tokens * (shape.ngrams - 1) * (8 * width + 8)  # rows looked up, their gradients, their numbers
    moments = moment_bytes(settings, shape)
    one_in = settings.sampled_softmax
    candidates = count(
        min(settings.batch_size * settings.context, shape.vocabulary_size), shape.vocabulary_size, one_in
    )
    logits = (
        12 if low == 4 else 14
    )  # bytes for each: in low precision they, or their gradient, are there twice
    return Memory(
        {
            "weights": 4 * parameters + (0 if low == 4 else low * parameters),
            "gradients": 4 * parameters,
            "optimizer": moments,
            "activations": int(HOLES * shape.layers * tokens * (norms + products))
            + 5 * tokens * 4 * feed_forward
            + groups,
            "loss": tokens * candidates * logits,
        }
    )


def moment_bytes(settings: Settings, shape: Shape) -> int:
    by_muon = _block_matrices(shape) if settings.optimizer == "muon" else 0
    return 4 * by_muon + 8 * (sum(shape.parameters().values()) - by_muon)


def snapshot_bytes(settings: Settings, shape: Shape) -> int:
    """A checkpoint's size, and the host memory that its copy takes while it is written beside training."""
    return 4 * sum(shape.parameters().values()) + moment_bytes(settings, shape)


def _block_matrices(shape: Shape) -> int:
    """Weights that Muon steps, with one moment instead of two (`optim.py`)."""
    parts = shape.parameters()
    return parts["attention"] - 2 * shape.layers * shape.head_width + parts["feed-forward"]


def fitting_micro_batch(
    settings: Settings, shape: Shape, precision: str, free: int, below: int
) -> int | None:
    """The largest divisor of the batch size under ``below`` whose plan fits easily into ``free`` bytes, or None."""
    for size in range(min(below - 1, settings.batch_size), 0, -1):
        if settings.batch_size % size == 0:
            smaller = settings.model_copy(update={"micro_batch_size": size})
            if memory(smaller, shape, precision).total * SPARE <= free:
                return size
    return None


def less_memory(settings: Settings, shape: Shape, precision: str, free: int | None) -> str:
    """What to type where a run does not fit into the ``free`` bytes that there were before it began."""
    now = settings.micro_batch_size or settings.batch_size
    if free is not None:
        fits = fitting_micro_batch(settings, shape, precision, free, below=now)
    else:
        fits = next((n for n in range(now // 2, 0, -1) if settings.batch_size % n == 0), None)
    if fits is not None:
        return f"--micro-batch-size {fits}"
    return "a smaller --width, --layers, --feed-forward or --context: no micro-batch size makes this fit"


def tensors_of(settings: Settings, vocabulary_size: int) -> Wanted:
    """Name and shape of every tensor of a checkpoint, without memory for any of them."""
    shape = replace(shape_of(settings, vocabulary_size), context=1)  # tables of positions are no part of it
    with torch.device("meta"):
        model = LanguageModel(shape)
    optimizer = Optimizer(
        model,
        kind=settings.optimizer,
        betas=(0.9, 0.9),
        epsilon=1e-8,
        momentum=0.9,
        weight_decay=0.0,
        clip=0.0,
    )
    return Wanted(
        {name: tuple(weight.shape) for name, weight in model.named_parameters()}, optimizer.shapes()
    )


@dataclass(frozen=True)
class Duration:
    """Seconds of a run and what they were reckoned from."""

    seconds: float
    operations: float
    rate: float  # measured operations per second of one product
    beside: str = ""  # what is not in it

    def __str__(self) -> str:
        return (
            f"about {spell_seconds(self.seconds)} (an estimate: {self.operations:.2g} operations, evaluations included, at "
            f"{USUAL_SHARE:.0%} of the {self.rate / 1e9:,.0f} GFLOP/s that one matrix product reaches here{self.beside})"
        )


def evaluated_tokens(settings: Settings, validation_tokens: int) -> int:
    """Tokens that all evaluations of a run read together: the last one reads all that is held out."""
    every = settings.evaluate_every or max(1, settings.steps // 10)
    on_the_way = (settings.steps - 1) // every
    return (
        on_the_way * min(settings.evaluation_tokens or validation_tokens, validation_tokens)
        + validation_tokens
    )


def duration(settings: Settings, work: Work, device: Device, validation_tokens: int) -> Duration:
    """Measure one product at the model's own shape for a quarter of a second and reckon from it.

    A token that is evaluated costs a third of one that is learnt from: forward without backward.
    """
    shape = work.shape
    rows = min(4096, (settings.micro_batch_size or settings.batch_size) * settings.context)
    rate = device.matmul_rate(rows, shape.width, shape.feed_forward)
    learnt = settings.batch_size * settings.context * settings.steps
    on_the_way = evaluated_tokens(settings, validation_tokens) - validation_tokens
    evaluated = shape.operations_per_token(work.growth.mean_depth(settings.steps)) * on_the_way
    evaluated += shape.operations_per_token() * validation_tokens
    operations = work.mean(settings.steps) * learnt + evaluated / 3
    beside = "; the table of n-grams, which is no product, is not in it" if shape.ngrams > 1 else ""
    return Duration(operations / (rate * USUAL_SHARE), operations, rate, beside)


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
