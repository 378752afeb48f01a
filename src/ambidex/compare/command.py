"""`ambidex compare REFERENCE RUN...`: read the run folders, judge each pair, print. Needs numpy, and no torch."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from ambidex.cardfile import CARD
from ambidex.compare import folder, report
from ambidex.compare.folder import Folder
from ambidex.compare.judge import Verdict, judge
from ambidex.errors import Problem, Problems
from ambidex.escaping import one_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "reference",
        metavar="REFERENCE",
        help="the run folder that is taken as right; of a folder of runs, the newest in it",
    )
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="run folders; each is compared with the one before it"
    )
    parser.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out, and name, what holds no run (a leg not trained here)",
    )
    parser.add_argument(
        "--measure-again",
        type=int,
        default=0,
        metavar="N",
        help="first play the reference's traced steps N more times with other roundings, which raises its floor; needs torch and its text",
    )
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="also write the comparison as one page with its plots"
    )
    parser.add_argument("--json", action="store_true", help="the verdict for tools, schema 1")


def run(options: argparse.Namespace, measure_again: Callable[[Path, int], None]) -> int:
    """``measure_again`` raises the floor of a run by so many legs; it is given, since it needs torch and this does not."""
    paths = [newest(path) for path in (Path(options.reference), *map(Path, options.runs))]
    if options.skip_missing:
        missing = [path for path in paths if not folder.holds_run(path)]
        for path in missing:
            print(f"left out: {one_line(str(path))} holds no run", file=sys.stderr)
        paths = [path for path in paths if path not in missing]
        if len(paths) < 2:
            raise Problems(
                Problem("Two runs are needed to compare.", found=f"{len(paths)} of {len(paths) + len(missing)}",
                        wanted="at least two folders that hold a run", fix="ambidex train --trace --out FOLDER")
            )  # fmt: skip
    if options.measure_again < 0:
        raise Problems(Problem("--measure-again has a value that it cannot have.", found=str(options.measure_again),
                               wanted="0 or more"))  # fmt: skip
    if options.measure_again > 0:
        for path in paths[:-1]:
            measure_again(path, options.measure_again)
    verdicts = compare(paths)
    with suppress(BrokenPipeError):  # whoever read it has enough; the exit code is the verdict all the same
        print(report.as_json(verdicts) if options.json else report.text(verdicts), flush=True)
    if options.html is not None:
        from ambidex.compare.page import page
        from ambidex.page.markup import write

        write(options.html, page(verdicts))
        print(f"written  {options.html}", file=sys.stderr)
    return report.exit_code(verdicts)


def newest(path: Path) -> Path:
    """The run itself, or the newest run in a folder of runs, such as the one that AMBIDEX_RUNS names."""
    if folder.holds_run(path) or not os.path.isdir(path):  # noqa: PTH112  no error for a name that is too long
        return path
    try:
        runs = [
            inner for inner in path.iterdir() if not inner.name.startswith(".") and folder.holds_run(inner)
        ]
        return max(runs, key=lambda run: ((run / CARD).stat().st_mtime, run.name), default=path)
    except OSError:
        return path  # reading it will say what is wrong


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
    verdicts = [judge(before, after) for before, after in pairwise(folders)]
    for verdict, (before, after) in zip(verdicts, pairwise(paths)):
        if before.resolve() == after.resolve():
            verdict.notes.append("the reference and the run are one folder")
    return verdicts
