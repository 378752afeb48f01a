"""The memory that a short real run takes at its peak, beside what the plan said before it began.

    python benchmarks/memory.py [PRESET ...] [--precision fp32|bf16]

Every run has a process of its own. What the interpreter, torch and the kernels' own buffers take is measured there
too, by training a model of 2,500 weights first, and is subtracted: the plan does not speak of it. Linux only: the
kernel's high-water mark of the resident memory (VmHWM) is reset between the parts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from ambidex import checkpoint, config, launch, plan
from ambidex.engine import Device
from ambidex.text.tokens import Tokens, prepare
from ambidex.trainer import Trainer

PRESETS = ("nano", "mini", "45m")
STEPS = 3
SMALLEST = {"layers": 1, "width": 8, "heads": 1, "kv_heads": 1, "feed_forward": 8, "context": 8, "batch_size": 2,
            "tokenizer": "byte"}  # fmt: skip


class Words:
    """Stands for a tokenizer: what memory is taken does not depend on what the tokens say."""

    def __init__(self, vocabulary_size: int) -> None:
        self.vocabulary_size = vocabulary_size


def resident(which: str) -> int:
    """Bytes: VmRSS is what is held now, VmHWM the most since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this kernel tells no {which}")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def trainer(preset: str, precision: str, tokens: Tokens, **changes: object) -> Trainer:
    settings = config.resolve({"preset": preset, "precision": precision, **changes}, environment={}).settings
    vocabulary = settings.vocabulary_size if settings.tokenizer == "bpe" else 256
    some = np.random.default_rng(0).integers(0, vocabulary, 100_000, dtype=np.uint16)
    made_up = replace(tokens, train=some, validation=some[:5000], tokenizer=Words(vocabulary))  # type: ignore[arg-type]
    return launch.build(settings, Device("cpu", precision, 1), made_up)


def measure(preset: str, precision: str) -> dict[str, int]:
    """Bytes: the peak over some steps and an evaluation, the peak while saving, and what the plan says."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("to be or not to be " * 100)
        tokens = prepare([str(text)], tokenizer="byte", vocabulary_size=256, field="text", validation_fraction=0.1,
                         cache=Path(folder, "cache"), progress=False)  # fmt: skip
        small = trainer("nano", precision, tokens, **SMALLEST)
        for _ in range(STEPS):
            small.update()
        small.evaluate()
        checkpoint.save(Path(folder, "small"), small.snapshot())
        before = resident("VmRSS")
        forget_peak()
        big = trainer(preset, precision, tokens)
        for _ in range(STEPS):
            big.update()
        big.evaluate(2000)
        stepping = resident("VmHWM")
        forget_peak()
        checkpoint.save(Path(folder, "big"), big.snapshot())
        saving = resident("VmHWM")
    planned = plan.memory(big.settings, big.model.shape, precision)
    return {"before": before, "stepping": stepping - before, "saving": saving - before, "planned": planned.total,
            **planned.parts}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="peak memory of a short run beside its plan")
    parser.add_argument("presets", nargs="*", default=list(PRESETS))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.presets[0], options.precision)))
        return
    print(
        f"{'preset':<8}{'numbers':<9}{'planned':>12}{'measured':>12}{'planned/measured':>18}   steps, saving"
    )
    for preset in options.presets:
        answer = subprocess.run(
            [sys.executable, __file__, preset, "--precision", options.precision, "--child"],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found = json.loads(answer.stdout.splitlines()[-1])
        measured = max(found["stepping"], found["saving"])
        print(f"{preset:<8}{options.precision:<9}{plan.spell_bytes(found['planned']):>12}{plan.spell_bytes(measured):>12}"
              f"{found['planned'] / measured:>18.2f}   {plan.spell_bytes(found['stepping'])}, "
              f"{plan.spell_bytes(found['saving'])}")  # fmt: skip


if __name__ == "__main__":
    main()
