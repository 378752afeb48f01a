"""Loss over tokens and over seconds: `quick` as it is trained here, `quick` with every switch for speed off, a plain loop.

    python benchmarks/curves.py --data PATH [--picture FILE.png] [--json FILE]

One seed, one training after the other, on a machine that should be idle. All of ours see the same tokens in the same
order; the plain loop (`ambidex.plain`) has a recipe of its own. Seconds begin when the process does. Lines are the loss of
batches, dots the validation loss at the end. bf16 has no seconds where the processor only emulates it.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from ambidex.device import cpu as processor

OURS = {
    "quick, as trained here": [],
    "quick, each token alone": ["--ngrams", "1"],
    "quick, in bf16": ["--precision", "bf16"],
    "quick, fp32 and torch's own operations": ["--precision", "fp32", "--no-fused"],
}
PLAIN = "plain loop, nanoGPT's recipe"
SMOOTHED = 15_360  # characters of a running mean: 20 batches of the plain loop, 10 of `quick`


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="", help="a text; with --read it is not needed")
    parser.add_argument("--picture", type=Path, default=Path("curves.png"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path, help="draw what --json wrote, and train nothing")
    parser.add_argument("--only", nargs="*", default=[*OURS, PLAIN], choices=[*OURS, PLAIN])
    options = parser.parse_args()
    if options.read:
        found = json.loads(options.read.read_text("utf-8"))
    else:
        found = {name: curve(name, options.data) for name in options.only}
    if options.json:
        options.json.write_text(json.dumps(found), "utf-8")
    draw(found, options.picture)
    for name, one in found.items():
        took = f", {one['seconds'][-1]:.1f} s" if one["seconds"] else ""
        print(f"{name}: validation loss {one['val_loss']:.4f} after {one['tokens'][-1]:,} tokens{took}")


def curve(name: str, data: str) -> dict[str, Any]:
    return plain(data) if name == PLAIN else ours(OURS[name], data)


def ours(words: list[str], data: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "run")
        started = time.time()
        command = [sys.executable, "-m", "ambidex", "train", "--preset", "quick", "--data", data, "--out", str(out),
                   "--evaluate-every", "100000", "--sample-tokens", "0", *words]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        with (out / "metrics.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        whole = (out / "metrics.csv").stat().st_mtime - started
    seconds = [float(row["seconds"]) for row in rows]
    before = max(
        0.0, whole - seconds[-1]
    )  # the imports and the text; the last row's evaluation is in its seconds
    emulated = "bf16" in words and not processor.has_fast_bf16(processor.look().isa)
    return {
        "tokens": [int(row["tokens"]) for row in rows],
        "seconds": [] if emulated else [before + second for second in seconds],
        "loss": [float(row["loss"]) for row in rows],
        "val_loss": float(rows[-1]["val_loss"]),
    }


def plain(data: str) -> dict[str, Any]:
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "ambidex.plain", "--data", data], check=True, capture_output=True, text=True
    )
    whole = time.perf_counter() - began
    told = json.loads(done.stdout)
    steps, loss = len(told["loss"]), told["loss"]
    begin = (
        whole - told["seconds"] + told["import_seconds"]
    )  # steps take equal times; it keeps none of its own
    return {
        "tokens": [told["tokens"] * (step + 1) // steps for step in range(steps)],
        "seconds": [begin + (whole - begin) * (step + 1) / steps for step in range(steps)],
        "loss": loss,
        "val_loss": told["val_loss"],
    }


def draw(found: dict[str, dict[str, Any]], picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    styles = ["-", (0, (5, 1, 1, 1, 1, 1)), "--", ":", "-."]
    for axis, over, words in zip(
        axes, ("tokens", "seconds"), ("characters learnt from", "seconds from the prompt")
    ):
        for number, ((name, one), style) in enumerate(zip(found.items(), styles)):
            if one[
                over
            ]:  # without seconds where a training ran on a machine that its numbers are not made for
                label = f"{name}: {one['val_loss']:.3f}"
                axis.plot(
                    one[over],
                    smooth(one["loss"], one["tokens"][0]),
                    linestyle=style,
                    color=f"C{number}",
                    label=label,
                )
                axis.plot(one[over][-1], one["val_loss"], "o", color=f"C{number}")
        axis.axhline(1.88, linewidth=0.8, color="grey")
        axis.set_xscale("log")
        axis.set_xlabel(words)
        axis.grid(visible=True, linewidth=0.3)
    axes[0].set_ylabel(f"loss, nats a character,\nmean of {SMOOTHED:,} characters")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        title="lines: batches; dots and figures: validation, at the end",
    )
    figure.savefig(picture, dpi=110)


def smooth(losses: list[float], tokens_per_step: int) -> list[float]:
    steps = max(1, SMOOTHED // tokens_per_step)
    parts = [losses[max(0, end - steps) : end] for end in range(1, len(losses) + 1)]
    return [sum(part) / len(part) for part in parts]


if __name__ == "__main__":
    main()
