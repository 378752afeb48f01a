"""What stands between products, by torch's operations and by compiled passes, in turns, at the shapes of `45m`.

    python benchmarks/passes.py [--rounds N] [--threads N] [--batch N]

Each operation forward and backward: medians in milliseconds, and the ratio of the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ambidex import derivatives, engine
from ambidex.products import Operations

CONTEXT, HEADS, HEAD_WIDTH, FEED_FORWARD, VOCABULARY = 256, 8, 64, 1024, 32768
WIDTH = HEADS * HEAD_WIDTH
CHUNK = 512  # rows of logits at once


def operations(dtype: torch.dtype, batch: int) -> dict[str, tuple[list[Tensor], Callable[..., Tensor]]]:
    """By name: the leaves, and what is computed of them by an `Operations`."""
    stream = torch.randn(batch, CONTEXT, WIDTH)
    joined = torch.randn(batch, CONTEXT, 3 * WIDTH).to(dtype)
    heads = joined[..., :WIDTH].view(batch, CONTEXT, HEADS, HEAD_WIDTH)
    gate, up = torch.randn(batch, CONTEXT, 2 * FEED_FORWARD).to(dtype).split(FEED_FORWARD, -1)
    tables = torch.randn(CONTEXT, HEAD_WIDTH), torch.randn(CONTEXT, HEAD_WIDTH)
    by_head = [torch.randn(batch, HEADS, CONTEXT, HEAD_WIDTH).to(dtype) for _ in range(3)]
    return {
        "norm": ([stream, torch.randn(WIDTH)], lambda how, x, w: how.rms_norm(x, w, 1e-6)),
        "norm of heads": ([heads, torch.randn(HEAD_WIDTH)], lambda how, x, w: how.rms_norm(x, w, 1e-6)),
        "rotation": ([torch.randn(heads.shape)], lambda how, x: how.rotate(x, *tables, dtype)),
        "SwiGLU": ([gate, up], lambda how, a, b: how.swiglu(a, b)),
        "attention with its products": (by_head, lambda how, q, k, v: how.causal_attention(q, k, v)),
    }


def milliseconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return 1e3 * (time.perf_counter() - started)


def loss(how: Operations, logits: Tensor, targets: Tensor) -> Tensor:
    return how.cross_entropy(logits, targets, -100, True, lambda rows: logits[rows])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="operations between products, torch's and compiled, in turns"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=8)
    options = parser.parse_args()
    engine.Device("cpu", "fp32", options.threads)
    fused, why_not = engine.fused_operations()
    if why_not:
        raise SystemExit(f"no compiled passes here: {why_not}")
    ways: dict[str, Operations] = {"torch": derivatives, "compiled": fused}
    print(
        f"{options.threads} thread(s), {options.batch} x {CONTEXT} tokens; milliseconds, torch / compiled = ratio"
    )
    for dtype in (torch.float32, torch.bfloat16):
        for name, (inputs, compute) in operations(dtype, options.batch).items():
            leaves = [tensor.detach().requires_grad_() for tensor in inputs]
            outer = torch.randn_like(compute(derivatives, *leaves))
            forward: dict[str, list[float]] = {way: [] for way in ways}
            backward: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, how in ways.items():
                    made: list[Tensor] = []
                    forward[way].append(milliseconds(lambda: made.append(compute(how, *leaves))))  # noqa: B023
                    backward[way].append(milliseconds(lambda: torch.autograd.grad(made[0], leaves, outer)))  # noqa: B023
            line(dtype, name, forward, backward)
        both: dict[str, list[float]] = {way: [] for way in ways}
        targets = torch.randint(VOCABULARY, (CHUNK,))
        for _ in range(options.rounds):
            for way, how in ways.items():
                logits = torch.randn(CHUNK, VOCABULARY).to(dtype)
                both[way].append(milliseconds(lambda: loss(how, logits, targets)))  # noqa: B023
        line(dtype, f"loss of {CHUNK} rows, with its gradient", both)


def line(dtype: torch.dtype, name: str, *times: dict[str, list[float]]) -> None:
    text = []
    for took in times:
        torchs, compiled = (statistics.median(took[way]) for way in ("torch", "compiled"))
        text.append(f"{torchs:8.2f} / {compiled:8.2f} = {torchs / compiled:5.2f}")
    print(f"{str(dtype)[6:]:<9}{name:<36}{'   '.join(text)}", flush=True)


if __name__ == "__main__":
    main()
