"""Several tokens at once: beside its own row, a token has one for the last two, one for the last three, and so on.

What two layers of attention would first have to learn, which token stood before this one, is looked up instead, without a
product. Groups of tokens are far too many for a row each, so a group's row is found by a rolling polynomial hash, and
groups that hash alike share one (Huang et al., "Over-Tokenized Transformer", 2025; of bytes: Pagnoni et al., "Byte Latent
Transformer", 2024). Qwen3's layout has no place for such a table. Shapes in comments: B sequences, T tokens, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRIME = 2**31 - 1
MULTIPLIER = 48_271  # a primitive root of that prime (Park, Miller and Stockmeyer, 1993), so its powers spread over all of it


class NGramEmbedding(nn.Module):
    """The sum of the rows of the groups that end in each token: of 2 to ``longest`` tokens, ``rows`` for each length."""

    def __init__(self, longest: int, rows: int, width: int) -> None:
        super().__init__()
        self.longest, self.rows = longest, rows
        self.weight = nn.Parameter(torch.zeros((longest - 1) * rows, width))

    def forward(self, tokens: Tensor, earlier: Tensor) -> Tensor:
        """(B, T, W) for ``tokens`` (B, T), which come behind ``earlier`` (B, any number)."""
        found = F.embedding(self.rows_of(tokens, earlier), self.weight)  # (B, T, longest - 1, W)
        return found.sum(dim=2)

    def rows_of(self, tokens: Tensor, earlier: Tensor) -> Tensor:
        """Number of the row of each group, (B, T, longest - 1). What lies before the first token counts as token -1."""
        length = tokens.shape[1]
        known = F.pad(torch.cat((earlier, tokens), dim=1), (self.longest, 0), value=-1) + 1
        hashed, factor, found = known[:, -length:], 1, []
        for back in range(1, self.longest):
            factor = factor * MULTIPLIER % PRIME
            # Below 2**20 tokens and 2**31: nowhere near the end of int64.
            hashed = (hashed + known[:, -length - back : -back] * factor) % PRIME
            found.append(hashed % self.rows + (back - 1) * self.rows)
        return torch.stack(found, dim=2)
