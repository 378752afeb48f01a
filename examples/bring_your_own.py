"""Compare two trainings of a model of your own: here a small convolutional network that learns to tell two shapes apart.

    python examples/bring_your_own.py runs/mine
    ambidex compare runs/mine/plain runs/mine/channels-last
    ambidex compare runs/mine/plain runs/mine/broken

The first pair is the same training with another memory layout: other kernels, other roundings, nothing wrong. In the
second pair one layer's weights are not updated.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import ambidex

STEPS, BATCH, SIDE = 9, 16, 12


def pictures(step: int) -> tuple[Tensor, Tensor]:
    """Noisy crosses and squares, drawn on the host so that they are the same everywhere: (BATCH, 1, 12, 12), (BATCH,)."""
    random = np.random.Generator(np.random.Philox(step))
    kind = random.integers(0, 2, BATCH)
    found = random.random((BATCH, 1, SIDE, SIDE), dtype=np.float32) * 0.5
    for number, square in enumerate(kind):
        row, column = random.integers(2, SIDE - 5, 2)
        patch = found[number, 0, row : row + 4, column : column + 4]
        patch += 1.0 if square else np.eye(4, dtype=np.float32) + np.eye(4, dtype=np.float32)[::-1]
    return torch.from_numpy(found), torch.from_numpy(kind)


def network() -> nn.Sequential:
    """The first weights come from the host too: torch's own generators differ between its versions."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 2),
    )  # fmt: skip
    random = np.random.Generator(np.random.Philox(1))
    with torch.no_grad():
        for weight in model.parameters():
            numbers = (random.random(tuple(weight.shape), dtype=np.float32) - 0.5) / weight[0].numel() ** 0.5
            weight.copy_(torch.from_numpy(numbers))
    return model


class Forgetful(torch.optim.AdamW):
    """Leaves the third parameter as it is, as a kernel once did that wrote nothing to tensors in another layout."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        weight = self.param_groups[0]["params"][2]
        before = weight.clone()
        super().step(closure)
        weight.copy_(before)


def train(out: Path, *, layout: torch.memory_format = torch.contiguous_format, broken: bool = False) -> None:
    kind = Forgetful if broken else torch.optim.AdamW
    for leg in range(4):  # 0 is the training itself; the others measure how far rounding alone carries it
        model = network().to(memory_format=layout)
        optimizer = kind(model.parameters(), lr=1e-2)
        with ambidex.trace(model, optimizer, out, leg=leg, config={"batch": BATCH, "rate": 1e-2}):
            for step in range(STEPS):
                inputs, labels = pictures(step)
                loss = nn.functional.cross_entropy(model(inputs.to(memory_format=layout)), labels)
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


if __name__ == "__main__":
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        raise SystemExit
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mine")
    train(folder / "plain")
    train(folder / "channels-last", layout=torch.channels_last)
    train(folder / "broken", broken=True)
    print(f"ambidex compare {folder / 'plain'} {folder / 'channels-last'}")
    print(f"ambidex compare {folder / 'plain'} {folder / 'broken'}")
