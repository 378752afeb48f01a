"""The verdict on a pair of runs: the same, or where they part first. Pure: cards, metrics and traces in, words out.

The order of checks is the order in which a step computes: data, weights, forward, a stale value, loss, backward,
accumulation, clip, moments, update, schedule. The most upstream stage over all steps that started from the same
numbers is to blame, not the earliest step: some faults are silent at step 0. Recordings that have had time to drift
are asked only when those that have not are clean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ambidex.compare import cards, rates
from ambidex.compare.align import DIFFERENT, EXACT, EXACT_ENOUGH, NEAR, TOO_HIGH, View, views
from ambidex.compare.bias import betas_in, is_bias_correction
from ambidex.compare.cards import Difference
from ambidex.compare.folder import Folder, Row
from ambidex.compare.rates import Rates, shared
from ambidex.compare.soundness import unsound
from ambidex.compare.stages import MOMENTS, STAGES, Finding, at_step, finding_of
from ambidex.compare.tracefile import Key
from ambidex.errors import Problem
from ambidex.escaping import one_line

ENOUGH_LEGS = 3
SAID = 5  # of what a run did not record


@dataclass
class Verdict:
    """What is to be said of a pair. ``same`` is None where it cannot be judged, and ``problems`` then say why."""

    reference: Folder
    run: Folder
    kind: str
    same: bool | None
    modes: list[str] = field(default_factory=list)
    first: Finding | None = None
    downstream: list[str] = field(default_factory=list)
    not_judged: list[dict[str, Any]] = field(default_factory=list)
    cards: list[Difference] = field(default_factory=list)
    worst: Finding | None = None  # the largest ratio of all that were judged
    near: int = 0  # tensors between the two limits
    judged: int = 0  # tensors, over all steps and modes
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def judge(reference: Folder, run: Folder) -> Verdict:
    verdict = Verdict(reference, run, cards.kind(reference.card, run.card), None)
    verdict.cards = cards.differences(reference.card, run.card)
    verdict.notes = [*_unfinished(reference), *_unfinished(run), *_turned_round(reference, run)]
    verdict.notes += [*_not_recorded(reference), *_not_recorded(run)]
    verdict.problems = cards.why_not(reference.card, run.card)
    if verdict.problems:
        return verdict
    found = views(reference.trace, run.trace) if reference.trace and run.trace else []
    verdict.modes = list(dict.fromkeys(v.leg.mode for v in found))
    verdict.first = _other_parameters(reference, run) or _weights(reference, run, found)
    if verdict.first is None and not found:
        return _by_metrics(verdict)
    if verdict.first is None and (problems := _no_rounding(reference, run)):
        verdict.problems = problems
        return verdict
    verdict.first = verdict.first or first_difference(
        found,
        reference.rows,
        run.rows,
        run.trace.feeds if run.trace else {},
        rates.written_down(reference, run),
    )
    verdict.first = verdict.first or _not_finite(reference.rows, run.rows)
    verdict.notes += [
        *rates.without_rows(reference, run),
        *rates.not_written_down(reference, run),
        *rates.of_other_length(reference, run),
        *_few_legs(reference),
    ]
    verdict.same = verdict.first is None
    _count(verdict, found)
    if verdict.same and not any(view.compared() for view in found):
        verdict.same, verdict.problems = (
            None,
            [_no_floor() if any(v.keys for v in found) else _in_common(found)],
        )
    return verdict


def _no_rounding(reference: Folder, run: Folder) -> list[Problem]:
    """Why nothing can be judged by the floor that would be: the reference's, or the run's where that has none."""
    for one in (reference, run):
        if one.trace and any(not np.isnan(table.floor).all() for table in one.trace.legs.values()):
            return unsound(one.name, one.trace)
    return []


def _other_parameters(reference: Folder, run: Folder) -> Finding | None:
    """A parameter that only one of the models has, such as a head that is no longer the embedding's own matrix."""
    for one, other, words in (
        (run, reference, "the reference has not"),
        (reference, run, "this run has not"),
    ):
        mine, theirs = _parameters(one), _parameters(other)
        for name in mine if mine and theirs else ():
            if name not in theirs:
                return Finding(0, "weights", name.rpartition(".")[0], f"weight of {name}", "free", float("inf"),
                               f"There is a parameter that {words}: {name}.")  # fmt: skip
    return None


def _parameters(one: Folder) -> dict[str, None]:
    legs = one.trace.legs.items() if one.trace else ()
    return {
        k.name: None for leg, table in legs if leg.mode == "free" for k in table.keys if k.kind == "weight"
    }


def _weights(reference: Folder, run: Folder, found: Sequence[View]) -> Finding | None:
    """Other first weights are the verdict, whatever follows from them."""
    before, after = reference.card.get("weights_sha256"), run.card.get("weights_sha256")
    for view in found:
        for number in view.at(0):
            if view.keys[number].kind == "weight" and view.dirty(number):
                return finding_of(view, number, "weights", view.keys[number].name.rpartition(".")[0],
                                "The first weights are not the same, before anything was computed.")  # fmt: skip
    if before != after and None not in (before, after):
        return Finding(
            0,
            "weights",
            "",
            "weights_sha256",
            "cards",
            float("inf"),
            "The hashes of the first weights differ.",
        )
    return None


def first_difference(found: Sequence[View], before: Sequence[Row], after: Sequence[Row], feeds: dict[str, list[str]],
                     written: tuple[Rates, Rates] | None = None) -> Finding | None:  # fmt: skip
    """The verdict on all recordings: those that start from the same numbers first."""
    rate = rates.of_rows(before, after) or (rates.of_own_loops(*written) if written else None)
    if written and rate is None:
        finding = _first(found, feeds, None)
        return _by_the_optimizer(finding) if finding and finding.stage == "schedule" else finding
    return _first(found, feeds, rate)


def _by_the_optimizer(finding: Finding) -> Finding:
    """All updates are off by a factor, and the learning rates, which somebody's own loop wrote down, are the same."""
    words = f"{finding.words} The learning rate that the optimizer was given is the same at every step."
    return replace(finding, stage="update", words=words)


def _first(found: Sequence[View], feeds: dict[str, list[str]], rate: Finding | None) -> Finding | None:
    fed = [(v, v.leg.start) for v in found if v.leg.mode == "fed"]
    sharp = [v for v in found if v.leg.mode == "state" and v.leg.precision in EXACT_ENOUGH]
    low = [v for v in found if v.leg.mode == "state" and v.leg.precision not in EXACT_ENOUGH]
    free = [v for v in found if v.leg.mode == "free"]
    exact_free = [v for v in free if v.leg.precision == "fp32"]
    for starts in (
        fed,
        [(v, v.leg.start) for v in sharp + exact_free],
        [(v, v.leg.start) for v in low + free],
    ):
        if finding := _most_upstream(starts, feeds, rate):
            return finding
    for some in (sharp + exact_free, low + free):
        if finding := _most_upstream([(v, v.leg.start + 1) for v in some], feeds, rate, second=True):
            return finding
    for view in free + [v for v in sharp if v.leg.start == 0]:
        if finding := _later(view, feeds, rate):
            return finding
    return rate


def _most_upstream(places: Sequence[tuple[View, int]], feeds: dict[str, list[str]], rate: Finding | None, *,
                   second: bool = False) -> Finding | None:  # fmt: skip
    found = [f for f in (at_step(view, step, feeds, second=second) for view, step in places) if f]
    if not found:
        return None
    first = min(found, key=lambda f: STAGES.index(f.stage))
    scales = {f.step: f.factor for f in found if f.stage == "schedule"}
    if first.stage == "schedule" and rate is None:
        if is_bias_correction(scales, betas_in(view for view, _ in places)):
            words = "All updates are off by the factor of AdamW's bias correction, left out or counted from another step."
            return replace(first, stage="update", words=words)
        if _changes(list(scales.values())):
            words = "In each step all updates are off by one factor, which changes from step to step."
            return replace(first, words=words)
    made_of_rates = STAGES.index(first.stage) >= STAGES.index("update") or (
        first.stage == "moments" and not first.tensor.replace(" ", "_").startswith(MOMENTS)
    )  # a step size, or an average of weights, that an optimizer of another kind keeps
    if rate is not None and made_of_rates and rate.step <= first.step:
        return rate
    if rate is not None and second and first.mode == "free" and rate.step < first.step:
        return rate  # what a forward owes to the update of the step before
    return first


def _changes(scales: Sequence[float]) -> bool:
    """Whether the factors of several steps are clearly not one and the same: a rate that is off is off everywhere."""
    return max(scales) - min(scales) > 0.1 * max(abs(scale - 1) for scale in scales)


def _later(view: View, feeds: dict[str, list[str]], rate: Finding | None) -> Finding | None:
    """In a run of several steps: the first probe step that differs although those before it were clean."""
    judged = [step for step in view.steps() if view.leg.precision in EXACT_ENOUGH and step > 1]
    for before, step in pairwise([1, *judged]):
        finding = at_step(view, step, feeds, second=False)
        if finding is None:
            continue
        if rate is not None and rate.step <= step:
            return rate
        if finding.stage == "forward":
            gap = f"between step {before} and step {step}" if step > before + 1 else f"at step {before}"
            words = f"All probes before were clean: something went wrong {gap}, and free runs alone do not say what."
            return Finding(step, "stale", finding.module, finding.tensor, finding.mode, finding.ratio, words)
        return finding
    return None


def _not_finite(before: Sequence[Row], after: Sequence[Row]) -> Finding | None:
    """A step whose loss is a number in one of the runs only: rounding does not make such a difference."""
    for mine, theirs in shared(before, after):
        if math.isfinite(mine.loss) != math.isfinite(theirs.loss):
            words = f"The loss is {theirs.loss:.6g} instead of {mine.loss:.6g}."
            return Finding(mine.step - 1, "loss", "loss", "loss", "metrics", float("inf"), words)
    return None


def _few_legs(reference: Folder) -> list[str]:
    """A loop of somebody's own has as many legs as its owner ran; `train --trace` knows how many it takes."""
    count = len(reference.trace.floor_legs) if reference.trace and "data" not in reference.card else 0
    if count not in range(1, ENOUGH_LEGS):
        return []
    legs = "1 leg" if count == 1 else f"{count} legs"
    return [f"The floor of {reference.name} is of {legs}; leg=1, 2 and 3 show more of what rounding can do."]


def _unfinished(one: Folder) -> list[str]:
    asked = cards.at(one.card, "config.steps")
    if not one.rows or not isinstance(asked, int) or one.rows[-1].step >= asked:
        return []
    return [f"{one.name} has {one.rows[-1].step} of its {asked} steps; nothing is said of the others."]


def _not_recorded(one: Folder) -> list[str]:
    """What ``ambidex.trace`` met and could not take down, by the card, which may come from anywhere."""
    found = one.card.get("not_recorded")
    said = [one_line(words) for words in found if isinstance(words, str)] if isinstance(found, list) else []
    more = f"; and {len(said) - SAID} more" if len(said) > SAID else ""
    return [f"{one.name} did not record: {'; '.join(said[:SAID])}{more}."] if said else []


def _turned_round(reference: Folder, run: Folder) -> list[str]:
    mine, theirs = reference.trace, run.trace
    if mine is None or theirs is None or mine.origin == mine.identity or mine.origin != theirs.identity:
        return []
    return [f"{reference.name} was trained --from-trace {run.name}: the other way round more can be judged."]


def _by_metrics(verdict: Verdict) -> Verdict:
    """Without two traces only what needs no floor can be said: equal in every digit, or where the numbers part."""
    before, after = verdict.reference.rows, verdict.run.rows
    both = shared(before, after)
    verdict.modes = []
    if both and len(both) == len(before) == len(after) and all(_equal(*rows) for rows in both):
        verdict.same = True
        verdict.notes.append(
            f"No trace; but loss, gradient norm and learning rate are equal in every digit over {len(both)} steps."
        )
        return verdict
    if finding := rates.of_rows(before, after) or _not_finite(before, after):
        verdict.first, verdict.same = finding, False
        return verdict
    for one in (verdict.reference, verdict.run):
        if not one.rows and one.trace is None:
            verdict.problems.append(
                Problem(f"{one.name} has no finished step yet.", found="no line in its metrics.csv", wanted="a run that has begun",
                        fix=f"ambidex train --resume --out {one.path}")
            )  # fmt: skip
    verdict.problems = verdict.problems or [
        Problem("Without two traces nothing says which differences are rounding.", found=_where_losses_part(both),
                wanted="two runs that were trained with --trace",
                fix="train both again with --trace; add --trace-states to the reference and --from-trace to the other for a sharper view")
    ]  # fmt: skip
    return verdict


def _equal(mine: Row, theirs: Row) -> bool:
    return repr(mine) == repr(theirs)  # what is no number equals no other


def _no_floor() -> Problem:
    return Problem(
        "The traces have no floor to judge by.", found="no tensor that both recorded has one",
        wanted="a floor for the first steps: a training repeated with other roundings",
        fix="ambidex train --trace measures one; with ambidex.trace, run the same loop again with leg=1, 2 and 3",
    )  # fmt: skip


def _in_common(found: Sequence[View]) -> Problem:
    def steps(keys: Sequence[Key]) -> str:
        return ", ".join(map(str, sorted({key.step for key in keys}))) or "none"

    view = found[0]
    return Problem(
        "The traces have no tensor in common.",
        found=f"steps {steps(view.reference.keys)} and steps {steps(view.candidate.keys)}",
        wanted="the same steps of both, and the same names in both models",
        fix="record both with the same steps=, among them step 0",
    )


def _where_losses_part(shared: Sequence[tuple[Row, Row]]) -> str:
    if not shared:
        return "no step that both runs have"
    for mine, theirs in shared:
        if not _equal(mine, theirs):
            last_mine, last_theirs = shared[-1]
            apart = abs(last_theirs.loss - last_mine.loss) / abs(last_mine.loss or 1)
            far = f", {apart:.2g} apart" if math.isfinite(apart) else ""
            return (f"the numbers part at step {mine.step}; at step {last_mine.step} the losses are "
                    f"{last_mine.loss:.6f} and {last_theirs.loss:.6f}{far}")  # fmt: skip
    return f"equal in every digit over the {len(shared)} steps that both have, but one run has more"


def _count(verdict: Verdict, found: Sequence[View]) -> None:
    """Worst ratio, what is near the limit, what was not judged, and what inherits the first difference."""
    guilty = verdict.first
    after: dict[str, None] = {}
    for view in found:
        judged = (view.floor <= TOO_HIGH) & ~np.isnan(view.floor)
        verdict.judged += int(judged.sum())
        verdict.near += int(((view.ratio > NEAR) & (view.ratio <= DIFFERENT)).sum())
        if len(view.keys) and judged.any():
            number = int(np.argmax(view.ratio))
            if verdict.worst is None or view.ratio[number] > verdict.worst.ratio:
                verdict.worst = finding_of(view, number, "", view.keys[number].name, "")
        verdict.not_judged += _not_judged(view)
        if guilty is not None:
            names = [view.keys[n].name for n in range(len(view.keys)) if view.dirty(n)]
            after |= dict.fromkeys(name for name in names if not _is_part_of(name, guilty))
    verdict.downstream = list(after)


def _is_part_of(name: str, guilty: Finding) -> bool:
    return name in (guilty.module, guilty.tensor) or guilty.tensor.endswith(f" of {name}")


def _not_judged(view: View) -> list[dict[str, Any]]:
    mode = view.leg.mode
    high = [
        {"mode": mode, "step": view.keys[n].step, "tensor": f"{view.keys[n].kind} of {view.keys[n].name}",
         "why": f"its floor is {view.floor[n]:.2g}: rounding alone makes such a difference"}
        for n in range(len(view.keys)) if view.floor[n] > TOO_HIGH
    ]  # fmt: skip
    unmeasured = sorted({view.keys[n].step for n in range(len(view.keys)) if np.isnan(view.floor[n])})
    if unmeasured:
        why = "no floor was measured so late in a free run"
        if np.isnan(view.floor).sum() == sum(key.kind not in EXACT for key in view.keys):
            why = "no floor was measured in either run"
        high.append({"mode": mode, "step": unmeasured[0], "tensor": f"all of step{'s' * (len(unmeasured) > 1)} {', '.join(map(str, unmeasured))}",
                     "why": why})  # fmt: skip
    high += [
        {"mode": mode, "step": view.leg.start, "tensor": one.replace(" ", " of ", 1),
         "why": "the batch was cut into other micro-batches, and all of it together is of another size then"}
        for one in view.unlike
    ]  # fmt: skip
    if view.unmatched and mode != "fed":
        high.append(
            {
                "mode": mode,
                "step": view.leg.start,
                "tensor": f"{view.unmatched} tensors",
                "why": "only one of the runs recorded them, or in other pieces",
            }
        )
    return high
