"""Lesson 1: what this machine has for training, and the CPU at work. Needs torch and nothing else.

    python cpu_demo.py

It prints what torch sees, then lets one learning step run on the CPU and shows where every tensor lay.
"""

import os
import platform
import time

import torch


def what_is_here() -> None:
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(
        f"torch {torch.__version__}, built {'with CUDA ' + torch.version.cuda if torch.version.cuda else 'without CUDA'}"
    )
    # Cores that exist are not cores that we may use: a container or a batch system may grant fewer.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{os.cpu_count()} logical cores, {usable} usable, {torch.get_num_threads()} threads in torch")
    print(f"widest instructions that torch uses here: {torch.backends.cpu.get_cpu_capability()}")
    # This asks only whether a driver answers. Whether the build has code for the GPU, only a kernel can say.
    print(f"a GPU that torch would try: {'yes' if torch.cuda.is_available() else 'none'}")


def how_fast(size: int = 512, seconds: float = 0.5) -> None:
    """The rate of one matrix product, the operation that training consists of."""
    for kind in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=kind)
        a @ a  # the first one prepares memory and threads
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            a @ a
            count += 1
        rate = 2 * size**3 * count / (time.perf_counter() - started)
        print(f"{str(kind).removeprefix('torch.'):>9} products: {rate / 1e9:6.1f} GFLOP/s")


def one_step() -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")  # said once, used everywhere: nothing below names a device again
    model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.GELU(), torch.nn.Linear(32, 1)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    inputs = torch.randn(64, 8, device=device)
    targets = inputs.sum(dim=1, keepdim=True)
    before = torch.nn.functional.mse_loss(model(inputs), targets)
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        loss.backward()
        optimizer.step()
    places = {str(tensor.device) for tensor in (inputs, targets, loss, *model.parameters())}
    print(
        f"100 steps: loss {before.item():.3f} -> {loss.item():.3f}; all tensors on: {', '.join(sorted(places))}"
    )
    assert places == {"cpu"}


if __name__ == "__main__":
    what_is_here()
    how_fast()
    one_step()
    print("next: python train_simple.py trains a transformer")
