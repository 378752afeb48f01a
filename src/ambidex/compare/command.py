"""`ambidex compare REFERENCE RUN...`: read the run folders, judge each pair, print. Needs numpy, and no torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from ambidex.compare import folder, report
from ambidex.compare.folder import Folder
from ambidex.compare.judge import Verdict, judge
from ambidex.errors import Problem, Problems


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("reference", metavar="REFERENCE", help="the run folder that is taken as right")
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders; each is compared with the one before it"
    )
    parser.add_argument("--json", action="store_true", help="the verdict for tools, schema 1")


def run(options: argparse.Namespace) -> int:
    verdicts = compare([Path(options.reference), *map(Path, options.runs)])
    print(report.as_json(verdicts) if options.json else report.text(verdicts))
    return report.exit_code(verdicts)


def compare(paths: Sequence[Path]) -> list[Verdict]:
    """One verdict for each pair of neighbours. Raises Problems (exit 3) with every folder that cannot be read."""
    folders: list[Folder] = []
    problems: list[Problem] = []
    code = 0
    for path in paths:
        try:
            folders.append(folder.read(path))
        except Problems as found:
            problems += found.problems
            code = found.exit_code
    if problems:
        raise Problems(problems, code)
    if len({path.resolve() for path in paths}) < len(paths):
        raise Problems(
            Problem("A run is given twice.", found=" ".join(map(str, paths)), wanted="different run folders")
        )
    return [judge(before, after) for before, after in pairwise(folders)]
