"""Lesson 2: a transformer that learns to write, on the CPU, in one file. Needs torch and nothing else.

    python train_simple.py            # under a minute
    python train_simple.py --steps 60

It reads the Python standard library's own source, byte by byte, and learns to guess the next byte. What it writes
before and after is printed. `ambidex train` is the same idea with everything that a real run needs.
"""

import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

DEVICE = torch.device("cpu")
CONTEXT, WIDTH, HEADS, LAYERS = 64, 128, 4, 3  # bytes seen at once; size of a byte's vector; ...
BATCH, RATE = 16, 3e-3


def read_text() -> torch.Tensor:
    """About a megabyte of Python, as byte values. (bytes,) int64"""
    library = Path(os.__file__).parent
    text = b"".join(path.read_bytes() for path in sorted(library.glob("*.py"))[:60])
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def random_batch(text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pieces of the text, and the same pieces one byte later: what is to be guessed. (BATCH, CONTEXT) each"""
    starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,))
    pieces = torch.stack([text[start : start + CONTEXT + 1] for start in starts]).to(DEVICE)
    return pieces[:, :-1], pieces[:, 1:]


class Block(nn.Module):
    """Every position looks at those before it (attention), then thinks by itself (feed-forward)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.mix = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, WIDTH)
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        # is_causal: nobody may look at the bytes that are to be guessed.
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (B, HEADS, T, WIDTH / HEADS)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.think(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(256, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 256)

    def forward(self, values: torch.Tensor) -> torch.Tensor:  # (B, T) -> (B, T, 256)
        x = self.byte(values) + self.place(torch.arange(values.shape[1], device=values.device))
        return self.head(self.norm(self.blocks(x)))


@torch.no_grad()
def write(model: Transformer, prompt: str = "def ", length: int = 160) -> str:
    """The model's own text: guess a byte, append it, guess again."""
    values = torch.tensor([list(prompt.encode())], device=DEVICE)
    for _ in range(length):
        chances = F.softmax(model(values[:, -CONTEXT:])[0, -1] / 0.8, dim=0)
        values = torch.cat([values, torch.multinomial(chances, 1)[None]], dim=1)
    return bytes(values[0].tolist()).decode("utf-8", "replace")


def main() -> None:
    parser = argparse.ArgumentParser(description="train a small transformer on the CPU")
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    text, model = read_text(), Transformer().to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    print(
        f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(text):,} bytes of text, on the {DEVICE}"
    )
    print(f"untrained, it writes: {write(model)!r}\n")
    print(f"knowing nothing costs ln 256 = {math.log(256):.2f} nats per byte")
    started, recent = time.perf_counter(), []
    for step in range(1, steps + 1):
        inputs, targets = random_batch(text)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        for group in optimizer.param_groups:  # up in the first tenth, then down to nothing
            group["lr"] = RATE * min(10 * step / steps, (1 - step / (steps + 1)) / 0.9)
        optimizer.step()
        recent = [*recent[-19:], loss.item()]
        if step % max(1, steps // 8) == 0:
            print(
                f"step {step:>4}: loss {sum(recent) / len(recent):.3f}, {time.perf_counter() - started:.0f} s"
            )
    print(f"\ntrained, it writes:\n{write(model)}")


if __name__ == "__main__":
    main()
