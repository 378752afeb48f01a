"""What --trace costs: a traced step against a plain one, the legs that measure the floor, and the size of what is kept.

    python benchmarks/trace_cost.py [PRESET ...] [--precision fp32|bf16] [--steps N]

Processor time of this process on one thread, plain and traced steps in turns; no trace file is asked for in the plain
ones, and a test (tests/compare/test_tracing.py) shows that then no hook is there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from memory import trainer

from ambidex.compare import tracefile
from ambidex.compare.align import view
from ambidex.compare.arithmetic import Exact, Noisy
from ambidex.compare.legs import Watcher, in_double, play, recorder_for
from ambidex.compare.tracefile import Leg, Table, Trace
from ambidex.text.tokens import prepare
from ambidex.trainer import Observer


def main() -> None:
    parser = argparse.ArgumentParser(description="what --trace costs")
    parser.add_argument("presets", nargs="*", default=["nano", "45m"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=3, help="of each kind")
    parser.add_argument("--no-legs", action="store_true", help="the steps of the training alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("to be or not to be " * 100)
        tokens = prepare([str(text)], tokenizer="byte", vocabulary_size=256, field="text", validation_fraction=0.1,
                         cache=Path(folder, "cache"), progress=False)  # fmt: skip
        for preset in options.presets:
            report(
                preset,
                options.precision,
                options.steps,
                trainer(preset, options.precision, tokens),
                legs=not options.no_legs,
            )


def report(preset: str, precision: str, steps: int, training, *, legs: bool) -> None:
    training.update()
    start = training.snapshot()
    recorder = recorder_for(training, set(range(1000)))
    plain, traced = [], []
    for _ in range(steps):
        training.observer = Observer()
        plain.append(seconds(training.update))
        training.observer = Watcher(recorder)
        traced.append(seconds(training.update))
    base = statistics.median(plain)
    table = Table.of(
        {
            key: one
            for key, one in recorder.record.items()
            if key.step == max(recorder.steps & {k.step for k in recorder.record})
        }
    )
    table.floor[:] = 1e-6
    size = len(
        tracefile.write(
            Trace("a", "a", precision, {Leg("free", 0, precision): table}, recorder.feeds, recorder.shapes)
        )
    )
    print(f"{preset} {precision}: a step {base:.3f} s, traced {statistics.median(traced):.3f} s ({statistics.median(traced) / base:.2f} times); "
          f"{len(table.keys):,} tensors, {size / 1e3:,.0f} kB a probe step", flush=True)  # fmt: skip
    took = seconds(lambda: view(Leg("free", 0, precision), table, table))
    print(f"  comparing {len(table.keys):,} tensors: {took * 1e3:.0f} ms", flush=True)
    if not legs:
        return
    first = start.step
    one = seconds(lambda: play(training, start, Watcher(recorder_for(training, {first})), 1, nudged=1))
    noise = seconds(lambda: play(training, start, Watcher(recorder_for(training, {first})), 1, Noisy(1)))
    training.model.double()
    training.device.products = None
    exact = seconds(
        lambda: play(training, in_double(start), Watcher(recorder_for(training, {first})), 1, Exact())
    )  # type: ignore[no-untyped-call]
    print(
        f"  a step of a leg: nudged {one / base:.1f}, noisy {noise / base:.1f}, fp64 {exact / base:.1f} times a plain one",
        flush=True,
    )


def seconds(work) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
