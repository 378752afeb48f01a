"""Which tokens a step sees: a pure function of (seed, step), so a run can be resumed from two integers.

The training tokens are cut into windows of ``context`` tokens. Each epoch lays the windows anew, at a random
offset, and visits each of them once in an order of its own. Nothing is kept between calls and nothing grows
with the text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from ambidex.errors import Exit, Problem, Problems
from ambidex.text.permutation import Permutation, mix
from ambidex.text.tokens import Tokens

IGNORED = -100  # the target of a padded position; torch's cross-entropy leaves this value out by default

Batch = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]  # inputs, targets: both (rows, context)
_ORDER, _OFFSET = 1, 2  # keep the two hashes of an epoch apart


class Batches:
    """Training batches. ``batch_size`` counts sequences per step over all processes.

    Raises Problems (exit 3) where the text is shorter than one window and the token after it.
    """

    def __init__(self, tokens: Tokens, context: int, batch_size: int, seed: int) -> None:
        if problem := shortage("training", tokens.train_tokens, context):
            raise Problems(problem, Exit.DATA)
        self.context = context
        self.batch_size = batch_size
        self.seed = seed
        self._train = tokens.train  # (train_tokens,)
        # One window fewer than fit leaves the room in which an epoch's offset can move them. The tokens left
        # out at the two ends, fewer than two windows, are others in each epoch.
        self.sequences = max(1, (tokens.train_tokens - 1) // context - 1)
        self._offsets = min(context, tokens.train_tokens - self.sequences * context)

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every window is seen once; a fraction where a batch straddles two epochs."""
        return self.sequences / self.batch_size

    def epoch(self, step: int) -> int:
        """The epoch, from 0, to which the first sequence of the step belongs."""
        return step * self.batch_size // self.sequences

    def starts(self, step: int) -> npt.NDArray[np.int64]:
        """Where in the training tokens each sequence of the step begins: (batch_size,)."""
        number = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epoch, place = np.divmod(number, self.sequences)
        starts = np.empty(self.batch_size, dtype=np.int64)
        for one in np.unique(epoch).tolist():
            here = epoch == one
            order = Permutation(self.sequences, mix(_ORDER, self.seed, one))
            offset = mix(_OFFSET, self.seed, one) % self._offsets
            starts[here] = offset + order(place[here]) * self.context
        return starts

    def batch(self, step: int) -> Batch:
        """Inputs and targets of a step, each int64 (batch_size, context): targets are one token later."""
        windows = np.empty((self.batch_size, self.context + 1), dtype=np.int64)
        for row, start in enumerate(self.starts(step).tolist()):
            windows[row] = self._train[start : start + self.context + 1]
        return windows[:, :-1], windows[:, 1:]


def validation_batches(
    tokens: Tokens, context: int, batch_size: int, limit_tokens: int | None = None
) -> Iterator[Batch]:
    """Windows over the held-out part in which every token after the first is predicted exactly once.

    Yields int64 (rows, context), rows <= batch_size. The last window is filled up with zeros whose targets
    are `IGNORED`. With ``limit_tokens`` only so many windows as hold that many predictions are taken, spread
    evenly over the whole part, the same at every call. Raises Problems (exit 3) where nothing is held out.
    """
    held_out = tokens.validation  # (validation_tokens,)
    predicted = len(held_out) - 1
    if predicted < 1:
        raise Problems(
            Problem(
                "the held-out part of the text is too short for a validation loss",
                found=f"{len(held_out)} tokens",
                wanted="at least 2",
                fix="give more text, or a larger --validation-fraction",
            ),
            Exit.DATA,
        )
    windows = -(-predicted // context)
    taken = windows if not limit_tokens else min(windows, -(-limit_tokens // context))
    chosen = [number * windows // taken for number in range(taken)]
    return _windows(held_out, chosen, context, batch_size)


def _windows(
    held_out: npt.NDArray[np.unsignedinteger[Any]], chosen: list[int], context: int, batch_size: int
) -> Iterator[Batch]:
    for first in range(0, len(chosen), batch_size):
        rows = chosen[first : first + batch_size]
        inputs = np.zeros((len(rows), context), dtype=np.int64)
        targets = np.full((len(rows), context), IGNORED, dtype=np.int64)
        for row, window in enumerate(rows):
            piece = held_out[window * context : (window + 1) * context + 1]  # (<= context + 1,)
            inputs[row, : len(piece) - 1] = piece[:-1]
            targets[row, : len(piece) - 1] = piece[1:]
        yield inputs, targets


def shortage(part: str, found: int, context: int) -> Problem | None:
    """The problem of a text too short for a context, or None."""
    if found >= context + 1:
        return None
    return Problem(
        f"the {part} text is shorter than one sequence",
        found=f"{found} tokens",
        wanted=f"at least {context + 1}: a context of {context} and the token after it",
        fix=f"--context {found - 1}, or more text" if found > 1 else "give more text",
    )
