"""A second table: beside its own row, a token has one for the last two tokens, one for the last three, and so on.

Which tokens stood before this one is looked up, without a product, where blocks would first have to learn to attend to
them. Groups of tokens are far too many for a row each, so a group's row is found by a hash, and groups that hash alike
share one (Huang et al., "Over-Tokenized Transformer", 2025; of bytes: Pagnoni et al., "Byte Latent Transformer", 2024).
Qwen3's layout has no place for such a table. Shapes in comments: B sequences, T tokens, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ambidex.randomness import uniform

# Of a hash. A multiplier of so many bits, times a token's number plus 1 (at most 1,000,000), plus a hash: within int64.
BITS = 43
TAKEN = 32  # of these, the upper ones, which every bit of every token reaches


def multipliers(count: int) -> list[int]:
    """Odd numbers of `BITS` bits, one for each place of a group, the same everywhere."""
    return [int(number * 2**BITS) | 1 for number in uniform(0, "n-grams", count)]


class NGramEmbedding(nn.Module):
    """The sum of the rows of the groups that end in each token: of 2 to ``longest`` tokens, ``rows`` for each length.

    A group's hash is the sum of its tokens, each times its place's multiplier, of which the upper bits count
    (multiply-shift: Dietzfelbinger et al., 1997); no remainder is taken, which MPS computed in fp32 up to torch 2.7
    (pytorch/pytorch#154171).
    """

    def __init__(self, longest: int, rows: int, width: int) -> None:
        super().__init__()
        self.longest, self.rows = longest, rows
        self.multipliers = multipliers(longest)
        self.weight = nn.Parameter(torch.zeros((longest - 1) * rows, width))

    def forward(self, tokens: Tensor, earlier: Tensor | None = None) -> Tensor:
        """(B, T, W) for ``tokens`` (B, T), which come behind ``earlier`` (B, any number), if anything."""
        found = F.embedding(self.rows_of(tokens, earlier), self.weight)  # (B, T, longest - 1, W)
        return found.sum(dim=2)

    def rows_of(self, tokens: Tensor, earlier: Tensor | None = None) -> Tensor:
        """Number of the row of each group, (B, T, longest - 1). What lies before the first token counts as token -1."""
        length = tokens.shape[1]
        # No empty tensor joined where nothing is earlier: torch.compile (2.13) fails on its shape.
        known = tokens if earlier is None else torch.cat((earlier, tokens), dim=1)
        known = F.pad(known, (self.longest - 1, 0), value=-1) + 1
        end, low = known.shape[1], 2**BITS - 1
        hashed, found = (known[:, -length:] * self.multipliers[0]) & low, []
        for back, multiplier in enumerate(self.multipliers[1:], start=1):
            hashed = (hashed + known[:, end - length - back : end - back] * multiplier) & low
            row = (hashed >> (BITS - TAKEN)) * self.rows >> TAKEN
            found.append(row + (back - 1) * self.rows)
        return torch.stack(found, dim=2)
