"""Tokens that training takes in per second of processor time, on one thread: what the guide's table is made of.

    python benchmarks/steps.py [PRESET ...] [--precision fp32|bf16] [--steps N]

Processor time rather than the clock, so that a busy machine distorts it less. Each preset runs in this process, after
one step that pays for memory.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from memory import PRESETS, trainer

from ambidex import plan
from ambidex.summary import work_of
from ambidex.text.tokens import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description="tokens per second of processor time, one thread")
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("to be or not to be " * 100)
        tokens = prepare([str(text)], tokenizer="byte", vocabulary_size=256, field="text", validation_fraction=0.1,
                         cache=Path(folder, "cache"), progress=False)  # fmt: skip
        for preset in options.presets:
            training = trainer(preset, options.precision, tokens)
            training.update()
            took = []
            for _ in range(options.steps):
                started = time.process_time()
                training.update()
                took.append(time.process_time() - started)
            s, step, work = training.settings, statistics.median(took), work_of(training)
            operations = work.at(0)
            rate = s.batch_size * s.context / step
            whole = plan.spell_seconds(s.steps * step * work.mean(s.steps) / operations)
            print(f"{preset:<6}{options.precision:<6}{step:9.2f} s a step {rate:9,.0f} tokens/s "
                  f"{rate * operations / 1e9:7.0f} GFLOP/s   its {s.steps} steps: {whole}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
