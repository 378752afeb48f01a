"""`ambidex bench --to-loss`: seconds from the shell's prompt to a validation loss, ours beside a plain loop's, in turns.

Ours is `ambidex train` as anyone types it, evaluated at its end alone; the other is `ambidex.plain`. Both start in a
process of their own, read the same file, hold out its last tenth, learn characters, and measure all of the held-out part
once, at the end.
How many steps each takes stands in its recipe beforehand. Every round has another seed.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ambidex import config
from ambidex.device import cpu as processor
from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import typed

PRESET = "quick"


@dataclass(frozen=True)
class Lap:
    """One training, from the start of its process. ``seconds`` end when the loss was known; ``until_prompt`` at its end."""

    seed: int
    val_loss: float
    seconds: float
    until_prompt: float
    tokens: int


def run(target: float, data: str, preset: str, rounds: int, first_seed: int, as_json: bool) -> int:
    """Race, print, and return the exit code. Raises Problems where the text or the preset is not there."""
    if not os.path.isfile(data):  # noqa: PTH113  it says no as well of a name that can be none
        raise Problems(Problem("There is no such text.", found=data, wanted="one text file in UTF-8",
                               fix="ambidex bench --to-loss 1.88 --data PATH"), Exit.DATA)  # fmt: skip
    steps = config.resolve({"preset": preset or PRESET}).settings.steps
    ours, plain = [], []
    for number, seed in enumerate(range(first_seed, first_seed + rounds), start=1):
        ours.append(our_lap(preset or PRESET, steps, data, seed))
        plain.append(plain_lap(data, seed))
        print(f"round {number} of {rounds}: ours {ours[-1].seconds:.1f} s, {ours[-1].val_loss:.4f}; "
              f"plain {plain[-1].seconds:.1f} s, {plain[-1].val_loss:.4f}", file=sys.stderr, flush=True)  # fmt: skip
    cpu = processor.look()
    report = {
        "target": target,
        "preset": preset or PRESET,
        "steps": steps,
        "cpu": {"name": cpu.name, "isa": list(cpu.isa), "threads": processor.threads_for_training(cpu)},
        "import_torch_seconds": import_seconds(),
        "ours": [asdict(lap) for lap in ours],
        "plain": [asdict(lap) for lap in plain],
        "ratio": statistics.median(b.seconds / a.seconds for a, b in zip(ours, plain)),
        "reached": sum(lap.val_loss <= target for lap in ours),
    }
    print(json.dumps(report, indent=2) if as_json else spelled(report))
    return Exit.DONE


def our_lap(preset: str, steps: int, data: str, seed: int) -> Lap:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        started, began = time.time(), time.perf_counter()
        child([
            "ambidex", "train", "--preset", preset, "--data", data, "--seed", str(seed), "--out", str(out),
            "--evaluate-every", str(steps),
        ])  # fmt: skip
        until_prompt = time.perf_counter() - began
        metrics = out / "metrics.csv"
        with metrics.open(encoding="utf-8", newline="") as file:
            last = list(csv.DictReader(file))[-1]
        known = metrics.stat().st_mtime - started  # the last row is written as soon as its loss is known
    return Lap(seed, float(last["val_loss"]), known, until_prompt, int(last["tokens"]))


def plain_lap(data: str, seed: int) -> Lap:
    began = time.perf_counter()
    found = json.loads(child(["ambidex.plain", "--data", data, "--seed", str(seed)]))
    took = time.perf_counter() - began
    return Lap(seed, float(found["val_loss"]), took, took, int(found["tokens"]))


def child(module: list[str]) -> str:
    done = subprocess.run([sys.executable, "-m", *module], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip()
        fix = "" if "\n  do: " in said else f"python -m {typed(module)}"  # it says itself what to do
        raise Problems(Problem("A contestant did not finish.", found=said, fix=fix), Exit.DATA)
    return done.stdout


def import_seconds() -> float:
    """What `import torch` alone takes, warm: part of both."""
    began = time.perf_counter()
    child_code = "import torch"
    subprocess.run([sys.executable, "-c", child_code], check=True, env=dict(os.environ))
    return time.perf_counter() - began


def spelled(report: dict[str, Any]) -> str:
    cpu = report["cpu"]
    lines = [f"{cpu['name']}, {cpu['threads']} threads; to a validation loss of {report['target']:g}, "
             f"reached by ours in {report['reached']} of {len(report['ours'])} rounds", "",
             f"{'':<8}{'seconds':>9}{'lowest':>9}{'highest':>9}{'to prompt':>11}{'val loss':>10}{'worst':>9}{'tokens':>12}"]  # fmt: skip
    for who in ("ours", "plain"):
        laps = report[who]
        seconds = [lap["seconds"] for lap in laps]
        losses = [lap["val_loss"] for lap in laps]
        lines.append(
            f"{who:<8}{statistics.median(seconds):>9.1f}{min(seconds):>9.1f}{max(seconds):>9.1f}"
            f"{statistics.median(lap['until_prompt'] for lap in laps):>11.1f}"
            f"{statistics.median(losses):>10.4f}{max(losses):>9.4f}{laps[0]['tokens']:>12,}"
        )
    share = 1 / report["ratio"]
    return "\n".join([*lines, "", f"ours takes {share:.1%} of the plain loop's time (median of the rounds' ratios); "
                      f"of both, import torch takes {report['import_torch_seconds']:.1f} s"])  # fmt: skip
