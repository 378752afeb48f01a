"""Faults of the rows for groups of tokens (`ngrams.py`), written after the rules and before any was tried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ambidex import ngrams, optim
from ambidex.trainer import Trainer
from faults.planting import Fault, Patch, around, gradient, with_built

MODULE = "model.embed_ngrams"
WEIGHT = f"{MODULE}.weight"


def in_the_table(change: Callable[[Any, Tensor], Tensor]) -> Callable[[Patch], None]:
    """Change what the table puts out, from within."""
    return around(ngrams.NGramEmbedding, "forward", lambda o, self, *tokens: change(self, o(self, *tokens)))


def rows(change: Callable[[Tensor], Tensor]) -> Callable[[Patch], None]:
    """Change which row a group has, (B, T, lengths)."""
    return around(ngrams.NGramEmbedding, "rows_of", lambda o, self, *tokens: change(o(self, *tokens)))


def shortest_twice(found: Tensor) -> Tensor:
    return torch.cat((found[..., :1], found[..., :-1]), dim=-1)


def one_token_late(found: Tensor) -> Tensor:
    return torch.cat((found[:, :1], found[:, :-1]), dim=1)


def next_row_in_one_place(found: Tensor) -> Tensor:
    found = found.clone()
    found[0, -1, 0] += 1
    return found


def without_decay(original: Any, self: Any, rate: float) -> None:
    table = self.named[WEIGHT]
    before = table.detach().clone()
    original(self, rate)
    with torch.no_grad():
        table += rate * self._adamw.weight_decay * before


def first_moment_larger(original: Any, self: Any, rate: float) -> None:
    original(self, rate)
    self._adamw.moments[WEIGHT][0].mul_(1.0001)


def unclipped(original: Any, self: Any, loss_scale: float = 1.0) -> float:
    whole = self.named[WEIGHT].grad.clone()
    norm: float = original(self, loss_scale)
    self.named[WEIGHT].grad.copy_(whole / loss_scale)
    return norm


def standing_still(original: Any, self: Any, rate: float) -> None:
    before = self.named[WEIGHT].detach().clone()
    original(self, rate)
    with torch.no_grad():
        self.named[WEIGHT].copy_(before)


def half_the_table(t: Trainer) -> None:
    with torch.no_grad():
        t.model.get_parameter(WEIGHT)[::2] *= 1.0001


NGRAMS = [
    Fault("rows of the table x 1.0001 at the start", "weights", MODULE, with_built(half_the_table)),
    Fault("other multipliers of the hash", "forward", MODULE,
          around(ngrams, "multipliers", lambda o, count: o(count)[::-1])),
    Fault("groups of one token later", "forward", MODULE, rows(one_token_late)),
    Fault("the longest groups left out", "forward", MODULE, rows(shortest_twice)),
    Fault("one group has its neighbour's row", "forward", MODULE, rows(next_row_in_one_place)),
    Fault("the mean of a token's groups", "forward", MODULE, in_the_table(lambda table, x: x / (table.longest - 1))),
    Fault("the table's output x 1.00001", "forward", MODULE, in_the_table(lambda table, x: x * 1.00001)),
    Fault("the table's output in bf16", "forward", MODULE, in_the_table(lambda table, x: x.bfloat16().to(x.dtype))),
    Fault("the table's gradient x 1.0001", "backward", MODULE, gradient(WEIGHT, lambda g: g * 1.0001)),
    Fault("the table learns nothing", "backward", MODULE, gradient(WEIGHT, torch.zeros_like)),
    Fault("the table left out of the clipping", "clip", MODULE, around(optim.Optimizer, "clip_gradients", unclipped)),
    Fault("the table's first moment x 1.0001", "moments", MODULE, around(optim.Optimizer, "step", first_moment_larger)),
    Fault("the table not decayed", "update", MODULE, around(optim.Optimizer, "step", without_decay)),
    Fault("a table that stands still", "update", MODULE, around(optim.Optimizer, "step", standing_still)),
]  # fmt: skip
