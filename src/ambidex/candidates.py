"""Sampled softmax: a loss over some tokens of a large vocabulary, which stands for the loss over all of them.

Most of the probability lies with the tokens that the batch asks for, so those are always among the candidates. Of the
others every so-manieth is, and counts for those between in the sum under the softmax, which is so very nearly right on
average; its logarithm, the loss, is a little low.
Bengio and Senécal, "Adaptive importance sampling to accelerate training of a neural probabilistic language model",
2008; Jean et al., "On using very large target vocabulary for neural machine translation", 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Candidates:
    """``tokens`` (S,), ascending; ``log_weights`` (S,) fp32: logarithms of how many tokens each one stands for."""

    tokens: NDArray[np.int64]
    log_weights: NDArray[np.float32]

    def places(self, targets: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each target, any shape, stands among the candidates."""
        return np.searchsorted(self.tokens, targets).astype(np.int64)


def count(held: int, vocabulary_size: int, one_in: int) -> int:
    """Candidates of a batch that holds ``held`` different tokens; at times one fewer."""
    return held + -(-(vocabulary_size - held) // one_in)


def draw(targets: NDArray[np.int64], vocabulary_size: int, one_in: int) -> Candidates:
    """The tokens of a whole batch of ``targets``, all of them to be predicted, and one in ``one_in`` of the others.

    A function of the batch alone, so that every process, and every way to split it, draws the same. Neighbours in a
    learnt vocabulary are about as frequent as each other: equal strides take some of each frequency.
    """
    held = np.unique(targets)
    others = np.setdiff1d(np.arange(vocabulary_size), held, assume_unique=True)
    stride = min(one_in, max(1, len(others)))
    drawn = others[int(targets.sum()) % stride :: stride]
    weight = np.log(len(others) / len(drawn)) if len(drawn) else 0.0
    tokens = np.concatenate((held, drawn))
    log_weights = np.concatenate((np.zeros(len(held)), np.full(len(drawn), weight)))
    order = np.argsort(tokens)
    return Candidates(tokens[order].astype(np.int64), log_weights[order].astype(np.float32))
