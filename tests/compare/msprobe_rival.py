"""msprobe's statistics mode (PyPI: mindstudio-probe) on the faults and honest legs of one configuration.

    PYTHONPATH=... python tests/compare/msprobe_rival.py --work DIR --config "muon fp32"

Each case trains two steps under `PrecisionDebugger(task="statistics", level="mix")` in a child process, and
`msprobe compare` judges its dumps against the reference's. The first row that is no `pass` names module and stage.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pytest  # noqa: E402
import suites  # noqa: E402
import torch  # noqa: E402
from msprobe.msprobe import main as msprobe  # noqa: E402
from msprobe.pytorch import PrecisionDebugger  # noqa: E402

import ambidex  # noqa: E402
from ambidex import engine, launch, trainer  # noqa: E402

STEPS = (0, 1)


class Dumping(trainer.Observer):
    def __init__(self, path: Path) -> None:
        self.debugger = PrecisionDebugger(
            task="statistics", dump_path=str(path), level="mix", step=list(STEPS)
        )

    def begins(self, one: trainer.Trainer, inputs: Any, targets: Any) -> None:
        if one.step in STEPS:
            self.debugger.start(one.model)

    def has_stepped(self, one: trainer.Trainer, norm: float) -> None:
        if one.step in STEPS:
            self.debugger.stop()
            self.debugger.step()


def dump(
    bench: suites.Bench, config: str, plant: Callable[[pytest.MonkeyPatch], None], out: Path, **settings: Any
) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIDEX_CACHE", str(bench.work / "cache"))
        patch.setattr(engine.Device, "matmul_rate", lambda self, *_: 1e9)
        plant(patch)
        patch.setattr(launch.tracing, "observer", lambda *_: Dumping(out / "dump"))
        ambidex.train(**{**suites.SMALL, **suites.CONFIGS[config], "data": [str(bench.text)], "trace": False, "steps": 12, **settings},
                      out=str(out / "run"))  # fmt: skip


def dumps(path: Path, step: int) -> str:
    return str(next((path / "dump" / f"step{step}").glob("proc*/dump.json")))


def first_alarm(reference: Path, candidate: Path) -> list[str] | None:
    """Row and result of the first line that is not `pass`, over both steps."""
    for step in STEPS:
        out = candidate / f"result{step}"
        sys.argv = [
            "msprobe",
            "compare",
            "-m",
            "auto",
            "-tp",
            dumps(candidate, step),
            "-gp",
            dumps(reference, step),
            "-o",
            str(out),
        ]
        msprobe()
        with next(out.glob("*.csv")).open(newline="") as file:
            for row in csv.DictReader(file):
                if row["Result"] != "pass":
                    return [row["NPU Name"], row["Result"]]
    return None


def in_child(work: Callable[[], Any]) -> Any:
    """What ``work`` returns, from a child process: msprobe patches torch for good."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with (
            Path(os.devnull).open("w") as nothing,
            contextlib.redirect_stdout(nothing),
            contextlib.redirect_stderr(nothing),
        ):
            try:
                said = json.dumps({"found": work()})
            except BaseException as error:
                said = json.dumps({"broken": repr(error)[:300]})
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    os.waitpid(child, 0)
    return json.loads(said or '{"broken": "no answer"}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--config", default="muon fp32")
    parser.add_argument("--every", type=int, default=1, help="only each Nth fault")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = suites.Bench(options.work, options.work / "msprobe.jsonl")
    reference, candidate = bench.work / "msprobe-reference", bench.work / "msprobe-candidate"
    in_child(lambda: dump(bench, options.config, lambda patch: None, reference))
    optimizer = suites.CONFIGS[options.config].get("optimizer", "muon")
    bad = [f for group in suites.GROUPS.values() for f in group if f.optimizer in ("", optimizer)][
        :: options.every
    ]
    cases = [("faults", f, {}) for f in bad] + [
        ("benign", b, b.settings) for b in suites.BENIGN if "compiled" not in b.name
    ]
    for suite, case, settings in cases:
        if not bench.missing(suite, options.config, 0, case.name):
            continue
        plant = case.plant if suite == "faults" else case.change

        def work(plant: Any = plant, settings: Any = settings) -> list[str] | None:
            dump(bench, options.config, plant, candidate, **settings)
            return first_alarm(reference, candidate)

        said = in_child(work)
        if "broken" in said:
            print("BROKEN", case.name, said["broken"], flush=True)
            continue
        row = {"suite": suite, "config": options.config, "seed": 0, "case": case.name, "found": said["found"] is not None,
               "right": True, "called": said["found"]}  # fmt: skip
        if suite == "faults":
            row |= {"stage": case.stage, "module": case.module_of(suites.SMALL["layers"])}
        bench.keep(row)


if __name__ == "__main__":
    main()
