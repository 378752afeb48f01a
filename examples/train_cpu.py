"""Lesson 4: the full training, with the CPU enforced. 45.6 million parameters, checkpoints, samples, exact resume.

    python train_cpu.py                      # the 45m preset: hours on two cores; --steps 20 shows the start
    python train_cpu.py --quick              # a small model on the same path, in a minute or so
    python train_cpu.py --data book.txt --out my-run
    python train_cpu.py --out my-run --resume

`device="cpu"` is the explicit way. It settles where training computes, and puts a guard around it: code that asks for
CUDA meanwhile, in whatever library, gets an error that names its line.
"""

import argparse
import sys

import ambidex
from ambidex.errors import Problems

QUICK = {"preset": "nano", "steps": 100}  # same code, a fortieth of the size
FULL = {"preset": "45m"}


def main() -> int:
    parser = argparse.ArgumentParser(description="train on the CPU, whatever else this machine has")
    parser.add_argument("--quick", action="store_true", help="a small model, in a minute or so")
    parser.add_argument(
        "--data", nargs="+", metavar="PATH", help="files or folders; left out: Python's own library"
    )
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", metavar="DIR", help="the run folder; left out: runs/PRESET-NNN")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    options = vars(parser.parse_args())
    settings = dict(QUICK if options.pop("quick") else FULL)
    settings.update({name: value for name, value in options.items() if value})  # only what was typed
    try:
        run = ambidex.train(device="cpu", **settings)
    except Problems as problems:
        print(problems, file=sys.stderr)
        return problems.exit_code
    if not options["dry_run"]:
        card = run.card  # everything that can change the numbers is on it
        print(
            f"computed on {card['device']['name']}, {card['device']['reason']}; {card['parameters']:,} parameters"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
