"""The loss: summed cross-entropy, in nats, over the tokens that are to be predicted."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ambidex.model import LanguageModel

IGNORED = -100  # a target that is not to be predicted: padding behind the last token of the held-out text


def cross_entropy_sum(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """Sum, not mean, so that micro-batches and processes add up to the loss of the whole batch.

    ``hidden`` is (B, T, W), ``targets`` (B, T) int64. Returns a scalar in fp32.
    """
    logits = model.logits(hidden).flatten(0, 1).float()  # (B*T, V)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum")
