"""`ambidex bench`: this machine's ceilings at the model's own shapes, a training step taken apart, and its share of them.

Times are by the clock on the wall, with the threads that training would take; the machine should be idle.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ambidex import config, plan, products
from ambidex.config import Settings
from ambidex.device import cpu as processor
from ambidex.engine import Device, exact_products, numerics, unlike_numbers
from ambidex.errors import Exit
from ambidex.loss import cross_entropy_sum
from ambidex.model import LanguageModel, Shape, initialise
from ambidex.optim import Optimizer

PARTS = ("data", "forward", "loss", "backward", "clipping", "optimizer")


def run(preset: str, precision: str, threads: int, steps: int, as_json: bool) -> int:
    """Measure, print, and return the exit code. Raises Problems where the preset is not there."""
    settings = config.resolve({"preset": preset}).settings
    cpu = processor.look()
    by_rule = "bf16" if processor.has_fast_bf16(cpu.isa) else "fp32"
    device = Device(
        "cpu", by_rule if precision == "auto" else precision, threads or processor.threads_for_training(cpu)
    )
    shape = plan.shape_of(settings, settings.vocabulary_size)
    ceilings = ceilings_at(product_shapes(settings, shape))
    report: dict[str, Any] = {
        "preset": preset,
        "precision": device.precision,
        "threads": device.threads,
        "cpu": {"name": cpu.name, "isa": list(cpu.isa)},
        "torch": torch.__version__,
        "numerics": {**numerics(), "between_products": device.between_products()},
        "copy_gigabytes_per_second": copy_rate() / 1e9,
        "ceilings_gflops": ceilings,
        "step": step_apart(settings, shape, device, steps),
    }
    tokens = settings.batch_size * settings.context
    rate = shape.operations_per_token() * tokens / report["step"]["seconds"] / 1e9
    best = max(row[name] for row in ceilings for name in backends(device.precision) if name in row)
    report["step"] |= {"tokens_per_second": tokens / report["step"]["seconds"], "gflops": rate}
    report["share_of_peak"] = rate / best
    report["disagrees"] = disagreement(ceilings, by_rule)
    print(json.dumps(report, indent=2) if as_json else spelled(report))
    return Exit.DONE


def product_shapes(settings: Settings, shape: Shape) -> dict[str, tuple[int, int, int]]:
    """The forward products of a step, (rows, inputs, outputs) each."""
    rows = (settings.micro_batch_size or settings.batch_size) * settings.context
    kv_width = shape.kv_heads * shape.head_width
    return {
        "query, key, value": (rows, shape.width, shape.width + 2 * kv_width),
        "attention out": (rows, shape.width, shape.width),
        "gate and up": (rows, shape.width, 2 * shape.feed_forward),
        "down": (rows, shape.feed_forward, shape.width),
        "head": (min(rows, 2048), shape.width, shape.vocabulary_size),
    }


def backends(precision: str) -> tuple[str, ...]:
    return ("bf16",) if precision == "bf16" else ("fp32", "fp32 by oneDNN")


def ceilings_at(shapes: dict[str, tuple[int, int, int]]) -> list[dict[str, Any]]:
    """GFLOP/s of each product by each way of doing it."""
    found = []
    for name, (rows, inner, outer) in shapes.items():
        x, weight = unlike_numbers(rows, inner), unlike_numbers(outer, inner)
        low_x, low_weight = x.bfloat16(), weight.bfloat16()
        ways: dict[str, Callable[[], object]] = {
            "bf16": lambda a=low_x, b=low_weight: a @ b.t(),  # type: ignore[misc]
            "fp32": lambda a=x, b=weight: a @ b.t(),  # type: ignore[misc]
        }
        if products.has_onednn_product():
            ways["fp32 by oneDNN"] = lambda a=x, b=weight: products.onednn_product(a, b)  # type: ignore[misc]
        work = 2.0 * rows * inner * outer / 1e9
        found.append(
            {
                "product": name,
                "shape": [rows, inner, outer],
                **{way: work / fastest(do) for way, do in ways.items()},
            }
        )
    return found


def fastest(do: Callable[[], object], seconds: float = 0.3) -> float:
    """Seconds of the fastest of at least three repetitions, after one that is not counted."""
    do()
    times: list[float] = []
    stop = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < stop:
        started = time.perf_counter()
        do()
        times.append(time.perf_counter() - started)
    return min(times)


def copy_rate() -> float:
    """Bytes per second read and written by a copy that no cache holds."""
    source = torch.ones(64 << 20, dtype=torch.float32)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / fastest(lambda: target.copy_(source))


def step_apart(settings: Settings, shape: Shape, device: Device, steps: int) -> dict[str, Any]:
    """Median seconds of each part of an update on random tokens, and the page faults of one."""
    model = LanguageModel(shape)
    initialise(model, seed=0)
    optimizer = Optimizer(
        model, kind=settings.optimizer, betas=(settings.beta1, settings.beta2), epsilon=settings.epsilon,
        momentum=settings.momentum, weight_decay=settings.weight_decay, clip=settings.clip,
        products=device.muon_precision(), norms_at_once=device.norms_at_once(),
    )  # fmt: skip
    optimizer.compute_by(device.muon_operations())
    numbers = np.random.default_rng(0)
    splits = settings.batch_size // (settings.micro_batch_size or settings.batch_size)
    rows = (settings.batch_size // splits, settings.context + 1)
    times: list[dict[str, float]] = []
    faults = page_faults()
    for _ in range(steps + 1):
        took = dict.fromkeys(PARTS, 0.0)
        for _ in range(splits):
            with Timed(took, "data"):
                text = numbers.integers(0, shape.vocabulary_size, rows)
                inputs, targets = device.tensor(text[:, :-1].copy()), device.tensor(text[:, 1:].copy())
            with device.autocast():
                with Timed(took, "forward"):
                    hidden = model(inputs)
                with Timed(took, "loss"):
                    loss = cross_entropy_sum(model, hidden, targets) / targets.numel() / splits
            with Timed(took, "backward"):
                loss.backward()  # type: ignore[no-untyped-call]
        with Timed(took, "clipping"):
            optimizer.clip_gradients()
        with Timed(took, "optimizer"):
            optimizer.step(1e-3)
            optimizer.zero_gradients()
        if not times:
            faults = page_faults()
        times.append(took)
    counted = times[1:]  # the first pays for memory and threads
    parts = {part: statistics.median(took[part] for took in counted) for part in PARTS}
    return {
        "seconds": statistics.median(sum(took.values()) for took in counted),
        "parts": parts,
        "page_faults": (page_faults() - faults) / len(counted),
    }


class Timed:
    """Adds the seconds of a block to an entry."""

    def __init__(self, took: dict[str, float], part: str) -> None:
        self.took, self.part = took, part

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.took[self.part] += time.perf_counter() - self.started


def page_faults() -> int:
    """Page faults of this process so far; 0 where nobody counts them."""
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def disagreement(ceilings: Sequence[dict[str, Any]], by_rule: str) -> str:
    """What to say where this machine's products are not as the rule of `--precision auto` has it; else nothing."""
    low, exact = (max(row[name] for row in ceilings) for name in ("bf16", "fp32"))
    by_onednn = max(row.get("fp32 by oneDNN", 0.0) for row in ceilings)
    taken = by_onednn if exact_products() == "oneDNN" else exact
    if (low > taken) != (by_rule == "bf16"):
        return (f"--precision auto takes {by_rule} by rule; measured: bf16 {low:,.0f}, fp32 {taken:,.0f} GFLOP/s. "
                f"--precision {'bf16' if by_rule == 'fp32' else 'fp32'} may be faster here.")  # fmt: skip
    if (by_onednn > 1.1 * exact) != (exact_products() == "oneDNN"):
        return f"fp32 goes through {exact_products()} by rule; measured: oneDNN {by_onednn:,.0f}, default {exact:,.0f} GFLOP/s."
    return ""


def spelled(report: dict[str, Any]) -> str:
    step = report["step"]
    lines = [
        f"{report['cpu']['name'] or 'this CPU'}, {report['threads']} threads, torch {report['torch']}",
        f"copying memory: {report['copy_gigabytes_per_second']:.1f} GB/s",
        "",
        f"{'product, GFLOP/s':<20}{'rows x in x out':<20}{'bf16':>8}{'fp32':>8}{'oneDNN fp32':>13}",
    ]
    for row in report["ceilings_gflops"]:
        size = " x ".join(map(str, row["shape"]))
        lines.append(f"{row['product']:<20}{size:<20}{row['bf16']:>8,.0f}{row['fp32']:>8,.0f}"
                     f"{row.get('fp32 by oneDNN', 0.0):>13,.0f}")  # fmt: skip
    lines += ["", f"a step of {report['preset']} in {report['precision']}, of all blocks and the whole vocabulary: {step['seconds'] * 1e3:,.0f} ms, "
              f"{step['tokens_per_second']:,.0f} tokens/s, {step['page_faults']:,.0f} page faults"]  # fmt: skip
    lines += [f"  {part:<12}{seconds * 1e3:>9,.1f} ms  {seconds / step['seconds']:>4.0%}"
              for part, seconds in step["parts"].items()]  # fmt: skip
    lines += [
        "",
        f"{step['gflops']:,.0f} GFLOP/s of products: {report['share_of_peak']:.0%} of the best one above",
    ]
    return "\n".join([*lines, report["disagrees"]]).rstrip()
