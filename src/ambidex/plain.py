"""The loop that most people start from, as a measure for ours: a GPT in fp32, with nothing done for its speed.

Shape and rates are those of nanoGPT's CPU recipe for the Shakespeare characters: 4 layers of width 128, 64 characters
of context, batches of 12, 2,000 steps of AdamW with a cosine (Karpathy, nanoGPT, README, "I only have a macbook").
`python -m ambidex.plain --data PATH` prints one line of JSON. Shapes in comments: B sequences, T characters, W width.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

LAYERS, HEADS, WIDTH, CONTEXT, BATCH, STEPS = 4, 4, 128, 64, 12, 2000
PEAK, LAST, WARM_UP = 1e-3, 1e-4, 100
HELD_OUT = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description="a plain training loop, to measure others by")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(train(options.data.read_text("utf-8"), options.steps, options.seed, options.threads)))


def train(text: str, steps: int, seed: int, threads: int) -> dict[str, Any]:
    """Train, then measure the loss on all of the held-out text, in nats per character."""
    began = time.perf_counter()
    import torch
    import torch.nn.functional as F

    imported = time.perf_counter() - began
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    letters = {letter: number for number, letter in enumerate(sorted(set(text)))}
    characters = torch.tensor([letters[letter] for letter in text])
    learnt = int((1 - HELD_OUT) * len(characters))
    model = gpt(len(letters))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK, betas=(0.9, 0.99),
    )  # fmt: skip
    curve = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(learnt - CONTEXT, (BATCH,))
        rows = torch.stack([characters[start : start + CONTEXT + 1] for start in starts])  # (B, T + 1)
        loss = F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        curve.append(loss.item())
    held_out = characters[learnt:]
    whole = (len(held_out) - 1) // CONTEXT * CONTEXT
    inputs, targets = held_out[:whole].view(-1, CONTEXT), held_out[1 : whole + 1].view(-1, CONTEXT)
    with torch.no_grad():
        parts = [
            F.cross_entropy(model(some).flatten(0, 1), answers.flatten(), reduction="sum")
            for some, answers in zip(torch.split(inputs, BATCH), torch.split(targets, BATCH))
        ]
    return {
        "val_loss": float(sum(parts)) / whole,
        "import_seconds": imported,
        "seconds": time.perf_counter() - began,
        "tokens": steps * BATCH * CONTEXT,
        "loss": curve,
    }


def rate(step: int, steps: int) -> float:
    if step < WARM_UP:
        return PEAK * (step + 1) / (WARM_UP + 1)
    progress = (step - WARM_UP) / max(1, steps - WARM_UP)
    return LAST + 0.5 * (1 + math.cos(math.pi * progress)) * (PEAK - LAST)


def gpt(vocabulary: int) -> Any:
    """Pre-norm blocks with learnt positions, GELU and tied weights (Radford et al., "GPT-2", 2019)."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.LayerNorm(WIDTH, bias=False), nn.LayerNorm(WIDTH, bias=False)
            self.mixing = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
            self.mixed = nn.Linear(WIDTH, WIDTH, bias=False)
            self.widen = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
            self.narrow = nn.Linear(4 * WIDTH, WIDTH, bias=False)

        def forward(self, x: Tensor) -> Tensor:  # (B, T, W)
            batch, length, _ = x.shape
            queries, keys, values = (
                self.mixing(self.first(x)).view(batch, length, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
            )
            seen = F.scaled_dot_product_attention(
                queries, keys, values, is_causal=True
            )  # (B, heads, T, W / heads)
            x = x + self.mixed(seen.transpose(1, 2).reshape(batch, length, WIDTH))
            return x + self.narrow(F.gelu(self.widen(self.second(x))))  # type: ignore[no-any-return]

    class Gpt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.letters, self.places = nn.Embedding(vocabulary, WIDTH), nn.Embedding(CONTEXT, WIDTH)
            self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
            self.last = nn.LayerNorm(WIDTH, bias=False)
            for name, weight in self.named_parameters():
                if weight.ndim == 2:
                    silent = name.endswith(("mixed.weight", "narrow.weight"))
                    nn.init.normal_(weight, std=0.02 / (2 * LAYERS) ** 0.5 if silent else 0.02)

        def forward(self, characters: Tensor) -> Tensor:  # (B, T) -> (B, T, V)
            x = self.letters(characters) + self.places(torch.arange(characters.shape[1]))
            return F.linear(self.last(self.blocks(x)), self.letters.weight)

    return Gpt()


if __name__ == "__main__":
    main()
