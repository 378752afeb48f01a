"""The probe's child process: run a training step's kinds of kernels on every GPU, one line of JSON for each
event.

The only file under device/ that imports torch, and it is run, never imported: by whichever Python is judged,
Python 3.8 or newer, so it keeps to old words. Each event is printed before what it announces is tried, so
that a crash or a hang still tells where it was.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any


def say(event: str, **what: Any) -> None:
    sys.stdout.write("ambidex-probe " + json.dumps(dict(what, event=event)) + "\n")
    sys.stdout.flush()


def near(torch: Any, found: Any, expected: Any) -> bool:
    """Whether two results agree to 2 %, which TF32 keeps and a miscompiled kernel does not."""
    found = found.detach().cpu()
    scale = expected.abs().max().clamp_min(1e-6)
    return bool(torch.isfinite(found).all()) and float((found - expected).abs().max() / scale) < 0.02


def operations(torch: Any, device: str) -> Any:
    """(name, run) pairs. Each run returns None, or says in words what came out wrong."""
    functional = torch.nn.functional
    left = torch.linspace(-1.0, 1.0, 64 * 64).reshape(64, 64)
    right = torch.linspace(0.5, -0.5, 64 * 64).reshape(64, 64)

    def add() -> str | None:
        return None if near(torch, left.to(device) + right.to(device), left + right) else "a wrong sum"

    def matmul() -> str | None:
        found = left.to(device) @ right.to(device)
        return None if near(torch, found, left @ right) else "a wrong product"

    def attention() -> str | None:
        gradients = []
        for place in (device, "cpu"):
            query = left.reshape(1, 4, 16, 64).clone().to(place).requires_grad_()
            functional.scaled_dot_product_attention(query, query, query, is_causal=True).sum().backward()
            gradients.append(query.grad)
        return None if near(torch, gradients[0], gradients[1]) else "wrong gradients of attention"

    def optimizer_step() -> str | None:
        layer = torch.nn.Linear(64, 64).to(device)
        before = layer.weight.detach().clone()
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01)
        layer(left.to(device)).square().mean().backward()
        optimizer.step()
        moved = (layer.weight.detach() - before).abs().max().item()
        return None if 0.0 < moved < 1.0 else "an update of " + repr(moved)

    return (
        ("add", add),
        ("matmul", matmul),
        ("attention forward and backward", attention),
        ("optimizer step", optimizer_step),
    )


def synchronize(torch: Any, device: str) -> None:
    """Wait for the kernels: an error of theirs may come no sooner."""
    if device != "cpu":
        (torch.mps if device == "mps" else torch.cuda).synchronize()


def try_device(torch: Any, device: str) -> bool:
    """Run every operation. Returns whether the process may be trusted with the next device."""
    started = time.perf_counter()
    name = "before the first kernel"
    try:
        for name, run in operations(torch, device):
            say("op", device=device, op=name)
            wrong = run()
            synchronize(torch, device)
            if wrong:
                say("failed", device=device, op=name, kind="WrongResult", message="the kernel gave " + wrong)
                return True
        say("ok", device=device, seconds=round(time.perf_counter() - started, 3))
        return True
    except Exception as error:
        message = str(error)
        say("failed", device=device, op=name, kind=type(error).__name__, message=message[:2000])
        # Some errors poison the CUDA context for good; these two leave it sound.
        return "no kernel image" in message or "out of memory" in message


def describe(torch: Any, ordinal: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(ordinal)
    uuid = str(getattr(properties, "uuid", "") or "")
    return {
        "device": f"cuda:{ordinal}",
        "name": properties.name,
        "cc": [properties.major, properties.minor],
        "uuid": "GPU-" + uuid if uuid and not uuid.startswith("GPU-") else uuid,
        "memory_bytes": properties.total_memory,
    }


def main(skip: int) -> None:
    here = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != here]
    try:
        torch = importlib.import_module("torch")
        say(
            "torch",
            version=str(torch.__version__),
            cuda=torch.version.cuda,
            hip=getattr(torch.version, "hip", None),
        )
    except BaseException as error:
        say("import_failed", kind=type(error).__name__, message=str(error)[:2000])
        return
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_available():
        say("count", count=1)
        say("device", device="mps", name="Apple GPU", cc=None, uuid="", memory_bytes=None)
        try_device(torch, "mps")
        return
    try:
        torch.cuda.init()
        count = torch.cuda.device_count()
    except BaseException as error:
        say("init_failed", kind=type(error).__name__, message=str(error)[:2000])
        return
    say("count", count=count)
    for ordinal in range(count):
        if ordinal < skip:
            continue
        try:
            say("device", **describe(torch, ordinal))
        except Exception as error:
            say("device", device=f"cuda:{ordinal}", name="", cc=None, uuid="", memory_bytes=None)
            say(
                "failed",
                device=f"cuda:{ordinal}",
                op="open",
                kind=type(error).__name__,
                message=str(error)[:2000],
            )
            return
        if not try_device(torch, f"cuda:{ordinal}"):
            return


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
