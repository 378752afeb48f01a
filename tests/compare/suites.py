"""The fault suite, the ladder and the benign suite: many small trainings in one process, one line of JSON a case.

    python tests/compare/suites.py --work DIR faults benign ladder
    python tests/compare/suites.py --work DIR --quick faults benign         # what CI runs
    python tests/compare/proof.py DIR/results.jsonl                         # the tables of docs/compare-proof.md

Cases that the results already hold are not run again, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pytest  # noqa: E402
import rivals  # noqa: E402
import torch  # noqa: E402
from benign import BENIGN, ENVIRONMENTS, Benign  # noqa: E402
from faults.again import AGAIN  # noqa: E402
from faults.blind import BLIND  # noqa: E402
from faults.fresh import FRESH  # noqa: E402
from faults.frozen import FROZEN  # noqa: E402
from faults.known import FAULTS  # noqa: E402
from faults.ladder import LADDER  # noqa: E402
from faults.ngrams import NGRAMS  # noqa: E402
from faults.planting import Fault  # noqa: E402

import ambidex  # noqa: E402
from ambidex import cardfile, engine, rows  # noqa: E402
from ambidex.compare import folder, report, tracefile  # noqa: E402
from ambidex.compare.align import views  # noqa: E402
from ambidex.compare.judge import Verdict, judge  # noqa: E402
from ambidex.compare.legs import Workshop  # noqa: E402
from ambidex.errors import Problems  # noqa: E402

SMALL: dict[str, Any] = {
    "layers": 2, "width": 64, "heads": 2, "kv_heads": 1, "feed_forward": 128, "context": 32, "batch_size": 8,
    "steps": 12, "evaluate_every": 12, "evaluation_tokens": 256, "sample_tokens": 0, "threads": 1, "device": "cpu",
    "precision": "fp32", "optimizer": "muon", "learning_rate": 1e-2, "trace": True,
    "trace_band": 0,  # a band around a curve, which no verdict looks at
    "fused": False,
}  # fmt: skip
ADAMW = {"optimizer": "adamw", "learning_rate": 3e-3}
LARGER = {"layers": 4, "width": 128, "heads": 4, "kv_heads": 2, "feed_forward": 256, "context": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "muon fp32": {},
    "muon bf16": {"precision": "bf16"},
    "adamw fp32": ADAMW,
    "adamw bf16": {**ADAMW, "precision": "bf16"},
    "low rate": {**ADAMW, "learning_rate": 3e-4},
    "high rate": {**ADAMW, "learning_rate": 2e-2},
    "larger": LARGER,
    "larger bf16": {**LARGER, **ADAMW, "precision": "bf16"},
    "micro-batches": {"micro_batch_size": 2},
    "n-grams": {"ngrams": 4, "ngram_rows": 256},
    "growing": {"layers": 3, "grow_from": 2, "grow_at": 0.5, "sampled_softmax": 4},
    "fused": {"fused": True},  # compiled passes between products
    "fused bf16": {**ADAMW, "precision": "bf16", "fused": True},
    "plain": {},  # torch's own products and derivatives on both sides, see `Bench`
}
SEEDS = {
    **dict.fromkeys(CONFIGS, 1),
    **dict.fromkeys(("muon fp32", "muon bf16", "adamw fp32", "adamw bf16"), 5),
}
CASE = "case.json"
NAMED = 0.95  # of the faults that change anything
GROUPS = {"known": FAULTS + BLIND, "frozen": FROZEN, "again": AGAIN, "fresh": FRESH, "n-grams": NGRAMS}


class Bench:
    """A folder of references and candidates, and the file of results."""

    def __init__(self, work: Path, results: Path) -> None:
        self.work, self.results = work.absolute(), results
        self.work.mkdir(parents=True, exist_ok=True)
        self.text = self.work / "story.txt"
        lines = (
            f"line {n} is followed by line {n + 1}, as {n % 7} is by {n * n % 97}.\n" for n in range(3000)
        )
        self.text.write_text("".join(lines), "utf-8", newline="\n")
        self.done = {self._name(row) for row in self.rows()}

    def rows(self) -> Iterator[dict[str, Any]]:
        if self.results.exists():
            yield from map(json.loads, self.results.read_text("utf-8").splitlines())

    @staticmethod
    def _name(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(key) for key in ("suite", "config", "seed", "case"))

    def missing(self, suite: str, config: str, seed: int, case: str) -> bool:
        return (suite, config, seed, case) not in self.done

    def keep(self, row: dict[str, Any]) -> None:
        with self.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self.done.add(self._name(row))
        if (row["suite"] == "benign" and row["found"]) or (row["suite"] != "benign" and not row.get("right")):
            print(
                "!",
                {
                    key: row.get(key)
                    for key in ("suite", "config", "seed", "case", "stage", "module", "first")
                },
                flush=True,
            )

    def reference(self, config: str, seed: int) -> Path:
        path = self.work / f"{config.replace(' ', '-')}-{seed}"
        if not (path / "summary.md").exists():
            self.train(config, seed, path, floor=True, trace_states=True)
        return path

    def candidate(self, config: str, seed: int, plant: Callable[[pytest.MonkeyPatch], None], *, floor: bool,
                  **settings: Any) -> Path:  # fmt: skip
        path = self.work / f"candidate-{os.getpid()}"
        shutil.rmtree(path, ignore_errors=True)
        with pytest.MonkeyPatch.context() as patch:
            plant(patch)
            self.train(
                config, seed, path, floor=floor, from_trace=str(self.reference_path(config, seed)), **settings
            )
        return path

    def reference_path(self, config: str, seed: int) -> Path:
        return self.work / f"{config.replace(' ', '-')}-{seed}"

    def put_by(self, candidate: Path, row: dict[str, Any]) -> Path:
        """Keep what the judge reads of a candidate, so that other rules can be tried on it without training it again."""
        name = hashlib.sha256(repr(self._name(row)).encode()).hexdigest()[:16]
        kept = self.work / "traces" / name
        kept.mkdir(parents=True, exist_ok=True)
        for part in (cardfile.CARD, tracefile.TRACE, rows.METRICS):
            if (candidate / part).exists():
                shutil.copyfile(candidate / part, kept / part)
        (kept / CASE).write_text(json.dumps(row), "utf-8")
        return kept

    def train(
        self,
        config: str,
        seed: int,
        out: Path,
        *,
        floor: bool,
        watching: Any = lambda out: contextlib.nullcontext(),
        **settings: Any,
    ) -> None:
        said = io.StringIO()
        before = torch.get_float32_matmul_precision()
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stderr(said),
            contextlib.redirect_stdout(said),
        ):
            patch.setenv("AMBIDEX_CACHE", str(self.work / "cache"))
            patch.setattr(engine.Device, "matmul_rate", lambda self, *_: 1e9)  # a stopwatch for the summary
            if config == "plain":
                patch.setattr(engine.Device, "_products", lambda self: None)
            if not floor:
                patch.setattr(Workshop, "floor_tables", lambda *_: {})
            with watching(out):
                ambidex.train(
                    **{**SMALL, **CONFIGS[config], "data": [str(self.text)], "seed": seed, **settings},
                    out=str(out),
                )
        torch.set_float32_matmul_precision(before)
        torch.set_flush_denormal(False)


def verdict_on(reference: Path, candidate: Path, *, handicap: float = 1.0) -> tuple[Verdict, bool]:
    """The judge's verdict, and whether any recorded number differs at all.

    ``handicap`` 2 judges as if the candidate's own floor had raised every limit as far as it ever may.
    """
    mine, theirs = folder.read(reference), folder.read(candidate)
    assert mine.trace is not None
    assert theirs.trace is not None
    if handicap > 1:
        for table in theirs.trace.legs.values():
            table.floor[:] = 1e9
    verdict = judge(mine, theirs)
    differs = (
        any((view.error > 0).any() for view in views(mine.trace, theirs.trace)) or verdict.first is not None
    )
    return verdict, differs


def summary(reference: Path, candidate: Path, verdict: Verdict, differs: bool) -> dict[str, Any]:
    pair = json.loads(report.as_json([verdict]))["pairs"][0]
    shown = {key: pair[key] for key in ("same", "modes", "near", "judged")}
    first = pair["first"] and {
        k: pair["first"][k] for k in ("step", "stage", "module", "tensor", "mode", "ratio")
    }
    worst = pair["worst"] and {k: pair["worst"][k] for k in ("step", "tensor", "mode", "ratio")}
    return {**shown, "found": int(report.exit_code([verdict])) != 0, "first": first, "worst": worst, "differs": differs}  # fmt: skip


def one_fault(
    bench: Bench, suite: str, group: str, config: str, seed: int, fault: Fault, *, floor: bool
) -> None:
    if not bench.missing(suite, config, seed, fault.name):
        return
    started = time.perf_counter()
    settings = {**SMALL, **CONFIGS[config]}
    module = fault.module_of(settings.get("grow_from") or settings["layers"])
    row = {"suite": suite, "group": group, "config": config, "seed": seed, "case": fault.name, "stage": fault.stage,
           "module": module}  # fmt: skip
    reference = bench.reference(config, seed)
    try:
        candidate = bench.candidate(config, seed, fault.plant, floor=floor)
        bench.put_by(candidate, row)
        verdict, differs = verdict_on(reference, candidate, handicap=1.0 if floor else 2.0)
        row |= summary(reference, candidate, verdict, differs)
        first = row["first"]
        row["right"] = bool(first and first["stage"] == fault.stage and module in ("", first["module"]))
    except Exception as error:
        if not isinstance(error, Problems):
            print("BROKEN", config, fault.name, repr(error)[:300], flush=True)
            return
        row |= {
            "found": True,
            "differs": True,
            "right": False,
            "first": None,
            "refused": error.problems[0].what,
        }
    bench.keep({**row, "seconds": round(time.perf_counter() - started, 2)})


def one_leg(bench: Bench, config: str, seed: int, leg: Benign, name: str = "") -> None:
    if not bench.missing("benign", config, seed, name or leg.name):
        return
    started = time.perf_counter()
    reference = bench.reference(config, seed)
    try:
        candidate = bench.candidate(config, seed, leg.change, floor=False, **leg.settings)
    except Exception as error:
        print("BROKEN", config, leg.name, repr(error)[:300], flush=True)
        return
    row = {
        "suite": "benign",
        "config": config,
        "seed": seed,
        "case": name or leg.name,
        "torch": torch.__version__,
    }
    bench.put_by(candidate, row)
    verdict, differs = verdict_on(reference, candidate)
    bench.keep({**row, **summary(reference, candidate, verdict, differs),
                "seconds": round(time.perf_counter() - started, 2)})  # fmt: skip


def judge_again(bench: Bench) -> None:
    """Judge every candidate that was put by anew, by the rules as they are now; the last line of a case counts."""
    for case in sorted((bench.work / "traces").glob(f"*/{CASE}")):
        row = json.loads(case.read_text("utf-8"))
        started = time.perf_counter()
        handicap = 2.0 if row["suite"] == "faults" else 1.0
        reference = bench.reference_path(row["config"], row["seed"])
        row |= summary(reference, case.parent, *verdict_on(reference, case.parent, handicap=handicap))
        if row["suite"] != "benign":
            first = row["first"]
            row["right"] = bool(
                first and first["stage"] == row["stage"] and row["module"] in ("", first["module"])
            )
        bench.keep({**row, "seconds": round(time.perf_counter() - started, 2)})


def faults_of(config: str, group: str, every: int = 1) -> list[Fault]:
    """The faults of a group that a configuration can have."""
    optimizer, ngrams = CONFIGS[config].get("optimizer", "muon"), CONFIGS[config].get("ngrams", 1)
    if group == "n-grams" and ngrams == 1:
        return []
    return [fault for fault in GROUPS[group][::every] if fault.optimizer in ("", optimizer)]


def faults(bench: Bench, configs: list[str], groups: list[str], every: int) -> None:
    for config in configs:
        for group in groups:
            for fault in faults_of(config, group, every):
                one_fault(bench, "faults", group, config, 0, fault, floor=False)


def ladder(bench: Bench, configs: list[str]) -> None:
    for config in configs:
        for fault in LADDER:
            one_fault(bench, "ladder", "ladder", config, 0, fault, floor=True)


def benign(bench: Bench, configs: list[str], seeds: int, *, quick: bool) -> None:
    plan = [(config, seed) for config in configs for seed in range(min(seeds, SEEDS[config]))]
    for config, seed in plan:
        bench.reference(config, seed)
        for leg in BENIGN:
            if (quick and "compile" in leg.settings) or not leg.is_honest():
                continue
            one_leg(bench, config, seed, leg)
    for name, environment in ENVIRONMENTS.items():
        in_another_process(bench, plan, name, sys.executable, environment)
    other = os.environ.get("AMBIDEX_OTHER_PYTHON")
    if other:  # another build of torch, on the CPU
        in_another_process(bench, plan, "another build of torch", other, {})
    if hasattr(os, "fork"):
        noise = [
            subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)
        ]
        try:
            for config, seed in plan[:: max(1, len(plan) // 8)]:
                one_leg(bench, config, seed, Benign("busy", settings={"threads": 2}), "another busy process")
        finally:
            for one in noise:
                one.kill()


def others(bench: Bench, configs: list[str], groups: list[str]) -> None:
    """The rivals' answers, from trainings without legs: what they look at is in the run itself."""
    for config in configs:
        reference = bench.work / "rivals-reference"
        shutil.rmtree(reference, ignore_errors=True)
        bench.train(config, 0, reference, floor=False, watching=rivals.watching)
        layers = {**SMALL, **CONFIGS[config]}["layers"]
        bad = [fault for group in groups for fault in faults_of(config, group)]
        good = [leg for leg in BENIGN if "compile" not in leg.settings and leg.is_honest()]
        cases = [
            (f.name, f.plant, {"of": "faults", "stage": f.stage, "module": f.module_of(layers)}, {})
            for f in bad
        ]
        cases += [(leg.name, leg.change, {"of": "benign"}, leg.settings) for leg in good]
        for name, plant, row, settings in cases:
            if not bench.missing("rivals", config, 0, name):
                continue
            out = bench.work / "rivals-candidate"
            shutil.rmtree(out, ignore_errors=True)
            with pytest.MonkeyPatch.context() as patch:
                plant(patch)
                try:
                    bench.train(config, 0, out, floor=False, watching=rivals.watching, **settings)
                except Exception as error:
                    print("BROKEN", config, name, repr(error)[:300], flush=True)
                    continue
            bench.keep({"suite": "rivals", "config": config, "seed": 0, "case": name, **row, "right": True, "seconds": 0.5,
                        **rivals.judge(reference, out)})  # fmt: skip


def in_another_process(
    bench: Bench, plan: list[tuple[str, int]], name: str, python: str, environment: dict[str, str]
) -> None:
    todo = [(config, seed) for config, seed in plan if bench.missing("benign", config, seed, name)]
    if todo:
        command = [
            python,
            __file__,
            "--work",
            str(bench.work),
            "--results",
            str(bench.results),
            "leg",
            name,
            json.dumps(todo),
        ]
        subprocess.run(command, env={**os.environ, **environment}, check=False)
        bench.done |= {bench._name(row) for row in bench.rows()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--configs", default=",".join(CONFIGS))
    parser.add_argument("--groups", default=",".join(GROUPS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one configuration, one seed, every fourth fault, nothing compiled",
    )
    parser.add_argument("what", nargs="+", help="faults, ladder, benign, rivals, judge (again)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.work, options.results or options.work / "results.jsonl")
    if options.what[0] == "leg":
        for config, seed in json.loads(options.what[2]):
            one_leg(bench, config, seed, Benign("as it is"), options.what[1])
        return
    configs = ["muon fp32"] if options.quick else options.configs.split(",")
    started = time.perf_counter()
    for what in options.what:
        if what == "faults":
            faults(bench, configs, options.groups.split(","), 4 if options.quick else 1)
        elif what == "judge":
            judge_again(bench)
        elif what == "ladder":
            ladder(bench, configs)
        elif what == "rivals":
            others(bench, [c for c in configs if c in ("muon fp32", "adamw bf16")], options.groups.split(","))
        elif what == "benign":
            benign(bench, configs, 1 if options.quick else options.seeds, quick=options.quick)
        print(f"{what}: {time.perf_counter() - started:.0f} s since the start", flush=True)
    found = list(bench.rows())
    wrong = [
        r
        for r in found
        if r["suite"] != "rivals"
        and (r["found"] if r["suite"] == "benign" else r["differs"] and not r["found"])
    ]
    faulty = [r for r in found if r["suite"] == "faults" and r["differs"]]
    named = sum(r["right"] for r in faulty) >= NAMED * len(faulty)
    raise SystemExit(1 if wrong or not named else 0)


if __name__ == "__main__":
    main()
