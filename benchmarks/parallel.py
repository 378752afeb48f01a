"""What a second process costs and gains on one machine, and what goes over the wire in a step.

    python benchmarks/parallel.py [--preset nano] [--steps 12] [--rounds 3]

In turns: one process with two threads, two processes with one thread each (torchrun, gloo over loopback), the same
training. Tokens per second are those of the median step, without the first two. Bytes are what the loopback interface
carried, by the kernel's count, in a longer run less a shorter one, so that starting costs nothing; other programs that
use loopback meanwhile are counted too, unless this is started in a network namespace of its own:

    unshare --net sh -c 'ip link set lo up && python benchmarks/parallel.py'

Then, within one pair of processes and in turns, a step as it is and a step with torch's DistributedDataParallel.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        side_by_side(options.preset, options.steps)
        return
    alone, together = [], []
    for number in range(options.rounds):
        alone.append(speed([sys.executable], options.preset, options.steps, threads=2))
        together.append(speed(TORCHRUN, options.preset, options.steps, threads=1))
        print(
            f"round {number + 1}: one process {alone[-1]:,.0f} tokens/s, two {together[-1]:,.0f}", flush=True
        )
    a, b = statistics.median(alone), statistics.median(together)
    print(
        f"{options.preset}: one process with 2 threads {a:,.0f} tokens/s, two with 1 thread {b:,.0f}: {b / a:.2f} of it"
    )
    few, many = (carried(options.preset, steps) for steps in (3, 3 + options.steps))
    print(
        f"{options.preset}: {(many - few) / options.steps:,.0f} bytes over loopback a step, both ways together"
    )
    inside = [*TORCHRUN, __file__, "--inside", "--preset", options.preset, "--steps", str(options.steps)]
    print(subprocess.run(inside, check=True, capture_output=True, text=True).stdout.strip())


def train(launcher: list[str], preset: str, steps: int, threads: int, out: Path) -> None:
    words = ["--preset", preset, "--steps", str(steps), "--threads", str(threads), "--device", "cpu", "--out", str(out),
             "--evaluate-every", "100000", "--save-every", "100000", "--sample-tokens", "0",
             "--validation-fraction", "0.02"]  # fmt: skip
    subprocess.run([*launcher, "-m", "ambidex", "train", *words], check=True, capture_output=True)


def speed(launcher: list[str], preset: str, steps: int, threads: int) -> float:
    from ambidex.runs import Run

    with tempfile.TemporaryDirectory() as folder:
        train(launcher, preset, steps, threads, Path(folder, "run"))
        return statistics.median(row.tokens_per_second for row in Run(Path(folder, "run")).metrics[2:])


def carried(preset: str, steps: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        before = loopback_bytes()
        train(TORCHRUN, preset, steps, 1, Path(folder, "run"))
        return loopback_bytes() - before


def loopback_bytes() -> int:
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[0])
    return 0


def side_by_side(preset: str, steps: int) -> None:
    """One process of two: our sum of gradients and torch's, a step each in turns."""
    from torch.nn.parallel import DistributedDataParallel

    from ambidex import config, launch
    from ambidex.engine import Device
    from ambidex.parallel.group import GradientSum
    from ambidex.parallel.place import Place
    from ambidex.parallel.together import Together
    from ambidex.text.cache import default_cache
    from ambidex.text.tokens import prepare

    settings = config.resolve({"preset": preset, "validation_fraction": 0.02}, environment={}).settings
    tokens = prepare(settings.data, tokenizer=settings.tokenizer, vocabulary_size=settings.vocabulary_size,
                     field=settings.field, validation_fraction=settings.validation_fraction,
                     cache=default_cache(os.environ), progress=False)  # fmt: skip
    place = Place.of(os.environ)
    group = Together(place, 300)
    made: list[Any] = []
    for _ in range(2):
        device = Device(
            "cpu", "bf16" if launch.processor.has_fast_bf16(launch.processor.look().isa) else "fp32", 1
        )
        made.append(launch.build(settings, device, tokens, group))
    ours, theirs = made
    theirs._gradient_sum = GradientSum()
    theirs.forward = DistributedDataParallel(theirs.model)
    took: dict[str, list[float]] = {"ours": [], "torch's": []}
    for _ in range(steps + 2):
        for name, trainer in (("ours", ours), ("torch's", theirs)):
            started = time.perf_counter()
            trainer.update()
            took[name].append(time.perf_counter() - started)
    found = {name: round(statistics.median(times[2:]), 4) for name, times in took.items()}
    if place.writes:
        print(f"{preset}: seconds a step, gradients added by each: {json.dumps(found)}", flush=True)
    group._exchange(None)
    os._exit(0)


if __name__ == "__main__":
    main()
