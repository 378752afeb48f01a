"""Text from a model, token by token, with a key/value cache. Random numbers come from the host (`randomness.py`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ambidex.engine import Device
from ambidex.model import Cache, LanguageModel
from ambidex.randomness import stream


@torch.no_grad()
def generate(
    model: LanguageModel,
    device: Device,
    prompt: Sequence[int],
    tokens: int,
    *,
    temperature: float = 0.8,
    top_k: int = 0,
    seed: int = 0,
    name: str = "sample",
) -> Iterator[int]:
    """Yield ``tokens`` token numbers after ``prompt``. Temperature 0 takes the likeliest token each time.

    When the context is full the second half of it is read again from the start, so the text may be of any length.
    """
    context = model.shape.context
    history = list(prompt)[-context:]
    chances = stream(seed, name)
    cache = Cache()
    fresh = history
    for _ in range(tokens):
        if cache.length + len(fresh) > context:
            cache, fresh = Cache(), history[-max(1, context // 2) :]
        batch = device.tensor(np.asarray([fresh], dtype=np.int64))  # (1, T)
        with device.autocast():
            logits = model.logits(model(batch, cache)[0, -1])  # (V,)
        token = _pick(logits.cpu().double().numpy(), next(chances), temperature, top_k)
        history.append(token)
        fresh = [token]
        yield token


def _pick(logits: NDArray[np.float64], chance: float, temperature: float, top_k: int) -> int:
    """The token at which the summed probability passes ``chance``."""
    if temperature <= 0:
        return int(logits.argmax())
    if 0 < top_k < len(logits):
        logits = np.where(logits < np.partition(logits, -top_k)[-top_k], -np.inf, logits)
    with np.errstate(
        over="ignore"
    ):  # by a temperature next to 0: all but the likeliest become 0, as they should
        weights = np.exp((logits - logits.max()) / temperature)
    summed = np.cumsum(weights)
    return min(int(np.searchsorted(summed, chance * summed[-1], side="right")), len(logits) - 1)
