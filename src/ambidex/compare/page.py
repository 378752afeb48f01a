"""A comparison as one HTML file: the verdict first, then the curves, where the runs part, speed, and what else differs.

Only what `judge` found is said here, in the words of `report`; the plots are those of `curves` and `ratios`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import ambidex
from ambidex.compare import report
from ambidex.compare.align import DIFFERENT, NEAR, TOO_HIGH, views
from ambidex.compare.cards import at
from ambidex.compare.curves import Curve, loss_figures
from ambidex.compare.folder import Folder
from ambidex.compare.judge import Verdict
from ambidex.compare.ratios import ratio_figures
from ambidex.escaping import typed
from ambidex.page.markup import Child, Element, document, el, preformatted, section, short, table
from ambidex.rows import METRICS, Row, read_metrics

SHOWN = 60  # rows of a list; --json has all
WORDS = {True: "the same", False: "different", None: "cannot be compared"}
CLASSES = {True: "same", False: "different", None: "unknown"}


def page(verdicts: Sequence[Verdict]) -> str:
    """The file's text."""
    folders = [verdicts[0].reference, *(verdict.run for verdict in verdicts)]
    names = labels(folders)
    curves = [Curve(name, read_metrics(folder.path / METRICS)) for name, folder in zip(names, folders)]
    pairs = list(zip(verdicts, pairwise(names)))
    parts: list[Child] = [section("Verdict", [_verdict(v, *both) for v, both in pairs] if len(pairs) > 1 else _verdict(*_flat(pairs[0])),
                                  name="verdict")]  # fmt: skip
    parts += _loss(curves, folders[0])
    for number, (verdict, both) in enumerate(pairs):
        parts += _where(verdict, both, f"pair{number}", alone=len(pairs) == 1)
    parts.append(_speed(folders, curves))
    parts += [_cards(verdict, both, f"cards{n}") for n, (verdict, both) in enumerate(pairs)]
    parts += [_not_judged(verdict, both, f"not-judged{n}") for n, (verdict, both) in enumerate(pairs)]
    parts.append(_reading())
    parts.append(_repeat(folders))
    header = [el("p", "ambidex compare: are these runs the same, and where do they part?", class_="kicker"),
              el("h1", _title(verdicts, names))]  # fmt: skip
    return document(f"{' → '.join(short(n, 60) for n in names)}: {WORDS[_overall(verdicts)]}", header, parts,
                    f"Written by ambidex {ambidex.__version__}. This file needs nothing else: no network and no script.")  # fmt: skip


def labels(folders: Sequence[Folder]) -> list[str]:
    """The folders' names, with their parents' where two have the same."""
    names = [short(folder.name, 80) for folder in folders]
    if len(set(names)) == len(names):
        return names
    return [f"{n}. {short(str(folder.path), 80)}" for n, folder in enumerate(folders, 1)]


def _flat(pair: tuple[Verdict, tuple[str, str]]) -> tuple[Verdict, str, str]:
    return pair[0], pair[1][0], pair[1][1]


def _overall(verdicts: Sequence[Verdict]) -> bool | None:
    return None if any(v.same is None for v in verdicts) else all(v.same for v in verdicts)


def _title(verdicts: Sequence[Verdict], names: Sequence[str]) -> str:
    pairs = list(zip(verdicts, pairwise(names)))
    if broken := [both for verdict, both in pairs if verdict.same is None]:
        return f"{_and(broken)} cannot be compared"
    if apart := [(verdict, both) for verdict, both in pairs if not verdict.same]:
        verdict, both = apart[0]
        first = verdict.first
        where = f": they part at step {first.step}, {report.place(first)}" if first else ""
        return f"{both[0]} and {both[1]} are different{where}"
    bits = all(verdict.worst is not None and verdict.worst.ratio == 0 for verdict in verdicts)
    return f"{_listed(names)} are the same" + (
        ", bit for bit" if bits else ": rounding explains every difference"
    )


def _and(pairs: Sequence[tuple[str, str]]) -> str:
    return "; ".join(f"{a} and {b}" for a, b in pairs)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _verdict(verdict: Verdict, before: str, after: str) -> Element:
    """One pair: the word, what it means, and the figures behind it."""
    said = report.headline(verdict)
    facts: list[tuple[str, str]] = [("the pair", report.kind(verdict))]
    if verdict.modes:
        facts.append(("judged", report.scope(verdict)))
    if verdict.same and verdict.worst is not None and verdict.worst.ratio > 0:
        facts.append(("worst tensor", f"{verdict.worst.ratio:.2g} times its floor: {report.worst(verdict)}"))
    if verdict.downstream:
        facts.append(("downstream, no fault of theirs", short(report.inherited(verdict, 12), 900)))
    lines: list[Child] = [el("h3", f"{before} → {after}: ", el("span", WORDS[verdict.same], class_="word"))]
    lines.append(el("p", _meaning(verdict, said)))
    lines += [el("p", words) for words in (*report.reasons(verdict), *verdict.notes)]
    lines += [_problem(problem) for problem in verdict.problems[:SHOWN]]
    lines.append(el("dl", [pair for term, words in facts for pair in (el("dt", term), el("dd", words))]))
    return el("div", lines, class_=f"verdict {CLASSES[verdict.same]}")


def _meaning(verdict: Verdict, said: str) -> str:
    if verdict.same is None:
        return (
            "No verdict is given, for this reason:"
            if len(verdict.problems) == 1
            else "No verdict is given, for these reasons:"
        )
    if verdict.first is not None:
        where = said.partition(" ")[2]
        return f"They part {where}. Rounding does not make such a difference."
    if not verdict.modes:
        return "Every number that both wrote down is equal."
    if verdict.worst is not None and verdict.worst.ratio == 0:
        return "Every tensor that was recorded is equal, bit for bit."
    return "No tensor is further off than rounding alone may carry it."


def _problem(problem: Any) -> Element:
    details = [("found", problem.found), ("wanted", problem.wanted), ("do", problem.fix)]
    return el("div", el("p", problem.what), el("dl", [part for term, words in details if words
                                                      for part in (el("dt", term), el("dd", short(words, 600)))]))  # fmt: skip


def _loss(curves: Sequence[Curve], reference: Folder) -> list[Child]:
    figures = loss_figures(curves, reference)
    if not figures:
        return [
            section(
                "Loss",
                el("p", f"None of these runs has a readable {METRICS}, so there is no curve to draw."),
                name="losses",
            )
        ]
    return [section("Loss", el("div", figures, class_="pair"), name="losses")]


def _where(verdict: Verdict, both: tuple[str, str], name: str, *, alone: bool) -> list[Child]:
    """Error over floor, for a pair that was judged."""
    reference, run = verdict.reference.trace, verdict.run.trace
    if reference is None or run is None or verdict.same is None:
        return []
    figures = ratio_figures(verdict, views(reference, run), name)
    title = "Error over floor" + ("" if alone else f": {both[0]} → {both[1]}")
    return [section(title, el("div", figures, class_="pair"), name=name)] if figures else []


def _speed(folders: Sequence[Folder], curves: Sequence[Curve]) -> Element:
    """What each leg was, how fast it went and what it took, a column each."""
    speeds = [_usual(curve.rows) for curve in curves]
    rows: list[list[Child]] = [
        ["device", *(short(at(f.card, "device.name"), 80) for f in folders)],
        ["torch", *(short(at(f.card, "build.torch"), 80) for f in folders)],
        ["precision", *(short(at(f.card, "precision"), 40) for f in folders)],
        ["threads", *(short(at(f.card, "threads"), 40) for f in folders)],
        [
            "tokens per second, median step",
            *(f"{speed:,.0f}" if speed else "not recorded" for speed in speeds),
        ],
        [
            "times the first run's speed",
            *(f"{speed / speeds[0]:.2f}" if speed and speeds[0] else "" for speed in speeds),
        ],
        [
            "seconds of training",
            *(f"{c.rows[-1].seconds:,.1f}" if c.rows else "not recorded" for c in curves),
        ],
        ["peak memory of the process", *(_bytes(at(f.card, "measured.peak_bytes")) for f in folders)],
        ["steps", *(f"{c.rows[-1].step:,}" if c.rows else "not recorded" for c in curves)],
        ["last training loss", *(f"{c.rows[-1].loss:.6f}" if c.rows else "not recorded" for c in curves)],
        ["last validation loss", *(_last_evaluation(c.rows) for c in curves)],
    ]
    made = table(
        "Speed and memory",
        ["of each run", *(c.name for c in curves)],
        rows,
        numbers=range(1, len(curves) + 1),
    )
    words = ("Each run's own clock and memory, on whatever else its machine did then. With --trace the peak holds the "
             "legs that measured the floor too.")  # fmt: skip
    return section("Speed and memory", made, el("p", words, class_="soft"), name="speed")


def _usual(rows: Sequence[Row]) -> float:
    """The median step's speed; the first, which pays for memory and threads, is left out."""
    return statistics.median(row.tokens_per_second for row in rows[1:]) if len(rows) > 1 else 0.0


def _bytes(value: object) -> str:
    return f"{value / 1e6:,.0f} MB" if isinstance(value, int) and 0 < value < 1 << 62 else "not recorded"


def _last_evaluation(rows: Sequence[Row]) -> str:
    found = [row.val_loss for row in rows if row.val_loss is not None]
    return f"{found[-1]:.6f}" if found else "not recorded"


def _cards(verdict: Verdict, both: tuple[str, str], name: str) -> Element:
    title = f"What else differs: {both[0]} → {both[1]}"
    if not verdict.cards:
        return section(
            title, el("p", "Nothing that the cards record and that can reach the numbers."), name=name
        )
    rows = [[d.key, short(d.reference, 160), short(d.run, 160), d.matters] for d in verdict.cards[:SHOWN]]
    return section(title, table("Differences between the cards, weightiest first", ["what", both[0], both[1], "how it can reach the numbers"], rows), name=name)  # fmt: skip


def _not_judged(verdict: Verdict, both: tuple[str, str], name: str) -> Element:
    title = f"What was not judged: {both[0]} → {both[1]}"
    if verdict.same is None:
        return section(title, el("p", "Nothing was: the two cannot be compared."), name=name)
    if not verdict.modes:
        return section(
            title,
            el("p", "Everything but loss, gradient norm and learning rate: there are no two traces."),
            name=name,
        )
    if not verdict.not_judged:
        return section(title, el("p", "Every tensor that both recorded was judged."), name=name)
    rows = [
        [f"{one['mode']}", f"{one['step']}", short(one["tensor"], 160), short(one["why"], 200)]
        for one in verdict.not_judged[:SHOWN]
    ]
    more = len(verdict.not_judged) - SHOWN
    made = table("Recorded and not judged", ["mode", "step", "tensor", "why"], rows, first_is_name=False)
    return section(
        title, made, el("p", f"And {more:,} more: --json lists them all.") if more > 0 else None, name=name
    )


def _reading() -> Element:
    words = [
        ("floor", "how far rounding alone carries a tensor: measured for each tensor and step, by repeating the reference's steps in fp64 and with other roundings"),
        ("error", "the distance of the two runs' tensors, relative to the reference's"),
        ("error / floor", f"up to {NEAR:g} the same; from {NEAR:g} to {DIFFERENT:g} close to the limit, still the same; above {DIFFERENT:g} different"),
        ("not judged", f"a tensor whose floor is above {TOO_HIGH:g}, or that only one run recorded, or for which no floor was measured"),
        ("fed", "each block was given the reference's input and gradient, so a fault shows in the part that has it and nowhere else"),
        ("from a state", "two steps from the reference's weights and moments"),
        ("free", "the runs as they went: sharp at the first steps only, since rounding grows"),
    ]  # fmt: skip
    return section(
        "How to read this page",
        el("dl", [part for term, said in words for part in (el("dt", term), el("dd", said))]),
        name="reading",
    )


def _repeat(folders: Sequence[Folder]) -> Element:
    command = typed(
        ["ambidex", "compare", *(short(str(f.path), 500) for f in folders), "--html", "compare.html"]
    )
    return section("How to make this page again", preformatted(command, "command"), name="repeat")
