"""What differs in one step of one recording, and which part is guilty: the checks, in the order in which a step computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ambidex.compare.align import LEAST, NEAR, View
from ambidex.compare.fingerprint import BUCKETS, STATISTICS, factors
from ambidex.compare.naming import guilty_backward, guilty_forward, loss_rows, lost_gradient, parent

ELEMENTS = STATISTICS.index("elements")
ALONE = 4.0  # times the error of the next
STAGES = ("data", "weights", "forward", "stale", "loss", "backward", "accumulation", "clip", "moments", "update",
          "schedule")  # fmt: skip
MOMENTS = ("momentum", "exp_avg", "exp_avg_sq")
BETWEEN = ("input_gradient", "output_gradient", "own_gradient")
UPDATES = ("steady_update", "update", "unseen_update")
NO_MOMENTS = {"tokens", "targets", "weight", "input", "output", "loss", *BETWEEN, "gradient", "norm",
              "clipped", *UPDATES}  # fmt: skip
MOST = 0.9  # of the tensors of a kind: then it is no tensor's fault but the loop's
SPREAD = 1.5  # between two estimates of the same relative error, each with a standard deviation of 9 %
CARRIED = 10.0  # times an update's ratio: a forward's floor is that much finer than an update's, but not a hundred times


@dataclass(frozen=True)
class Finding:
    """Where two runs part first. ``ratio`` is the error over the floor; ``words`` say why this part is blamed."""

    step: int
    stage: str
    module: str
    tensor: str
    mode: str
    ratio: float
    words: str = ""
    factor: float = 1.0  # of a schedule: every update is so many times the reference's


def at_step(view: View, step: int, feeds: dict[str, list[str]], *, second: bool) -> Finding | None:
    """What differs in one step that began from the same state (or, ``second``, right after such a step, which was clean)."""
    return (
        _data(view, step)
        or _forward(view, step, second=second)
        or _loss(view, step)
        or _backward(view, step, feeds, second=second)
        or _clip(view, step)
        or _moments(view, step)
        or _update(view, step)
    )


def _data(view: View, step: int) -> Finding | None:
    for number in view.at(step):
        key = view.keys[number]
        if key.kind in ("tokens", "targets") and view.dirty(number):
            if np.isinf(view.error[number]) and key.name == "model":
                return finding_of(view, number, "accumulation", "model",
                                "The model was given more or fewer tokens than the batch has.")  # fmt: skip
            return finding_of(view, number, "data", key.name, "The model was given other tokens.")
    return None


def _forward(view: View, step: int, *, second: bool) -> Finding | None:
    guilty = guilty_forward(view, step)
    if guilty is None:
        return None
    module, number = guilty
    if second:
        if carried := _carried_over(view, step, number):
            return carried
        words = "Its first step was clean, updates included; in the second its forward is not: it computes with a value of before."
        return finding_of(view, number, "stale", module, words)
    return finding_of(
        view, number, "forward", module, "What goes into it is the same, what comes out is not."
    )


def _carried_over(view: View, step: int, number: int) -> Finding | None:
    """A forward that is off by no more than what updates just within their limit can have done to the weights."""
    updates = [n for n in view.at(step - 1) if view.keys[n].kind in UPDATES]
    most = max(updates, key=lambda n: float(view.ratio[n]), default=None)
    if most is None or view.ratio[number] > CARRIED * view.ratio[most]:
        return None
    words = "Each update of the step before was within its limit, but what they add up to shows in this step's forward."
    return finding_of(view, most, "update", view.keys[most].name.rpartition(".")[0], words)


def _loss(view: View, step: int) -> Finding | None:
    dirty = [n for n in loss_rows(view, step) if view.dirty(n)]
    if not dirty:
        return None
    number = dirty[0]
    mine, theirs = view.rows[dirty[-1]]
    if view.reference.statistics[mine, ELEMENTS] != view.candidate.statistics[theirs, ELEMENTS]:
        words = "The forward is clean, and gradients flow back from more or from less of the batch."
        return finding_of(view, dirty[-1], "accumulation", "loss", words)
    scale, rest = _factors(view, [dirty[-1]])
    tolerance = view.limit * max(LEAST, float(view.floor[dirty[-1]]))
    times = max(abs(float(scale[0])), 1 / max(abs(float(scale[0])), LEAST))  # twice, or half
    whole = round(times)
    # 0 times the reference's is no count: what is not finite was left out of the sums.
    counted = abs(float(scale[0])) > LEAST
    if counted and rest[0] <= tolerance and whole >= 2 and abs(times - whole) <= whole * tolerance:
        words = f"The forward is clean, and every gradient is {scale[0]:.7g} times the reference's."
        return finding_of(view, number, "accumulation", "loss", words)
    return finding_of(
        view, number, "loss", "loss", "The forward is the same, the loss or its gradient is not."
    )


def _backward(view: View, step: int, feeds: dict[str, list[str]], *, second: bool) -> Finding | None:
    guilty = lost_gradient(view, step) or guilty_backward(view, step, feeds)
    if guilty is None:
        return None
    module, number = guilty
    if number is None:
        words = "There is a gradient that only one of the runs has."
        name = f"gradient of {module}"
        return Finding(step, "backward", parent(module), name, view.leg.mode, float("inf"), words)
    between = [n for n in view.at(step) if view.keys[n].kind in BETWEEN]
    parameters = [n for n in view.at(step) if view.keys[n].kind == "gradient"]
    dirty = [n for n in parameters if view.dirty(n)]
    flowing_is_clean = bool(between) and not any(view.dirty(n) for n in between)
    if parameters and len(dirty) >= max(2, MOST * len(_not_nothing(view, parameters))):
        if flowing_is_clean:
            words = (
                "What flows between the modules is the same; the gradients that are added up from it are not."
            )
            return finding_of(view, number, "accumulation", "model", words)
        if not between and (common := _common_factor(view, parameters)):
            words = f"Every gradient is {common:.7g} times the reference's."
            return finding_of(view, number, "accumulation", "model", words)
    words = (
        "Its forward is the same, and so is the gradient that reaches it."
        if flowing_is_clean or not second
        else ""
    )
    return finding_of(view, number, "backward", module, words)


def _not_nothing(view: View, numbers: Sequence[int]) -> list[int]:
    """Those that are more than zeros in either run: of a parameter that is not used, nothing can be off."""
    either = [
        max(view.reference.norms[view.rows[n][0]], view.candidate.norms[view.rows[n][1]]) for n in numbers
    ]
    return [n for n, norm in zip(numbers, either) if norm > 0]


def _common_factor(view: View, numbers: Sequence[int]) -> float | None:
    """The one factor by which all of these tensors are off; None where there is none."""
    numbers = _not_nothing(view, numbers)
    scale, rest = _factors(view, numbers)
    rounding = view.limit * _floors(view, numbers)
    common = float(np.median(scale))
    return common if ((rest <= rounding) & (np.abs(scale - common) <= rounding)).all() else None


def _floors(view: View, numbers: Sequence[int]) -> Any:
    return np.fmax(LEAST, np.nan_to_num(view.floor[list(numbers)], nan=LEAST))


def _handed_down(view: View, step: int, dirty: Sequence[int], by: Sequence[str]) -> Finding | None:
    """The tensor of which those that differ were made, where it is close to its limit and as far off as they are.

    A relative error stays what it is when a gradient is scaled, or added to a first moment, and doubles in a square.
    """
    if view.leg.mode == "fed":  # there the optimizer is given the reference's gradients
        return None
    for kind in by:
        sources = [view.find(step, kind, view.keys[n].name) for n in dirty]
        if all(up is not None and _explains(view, up, n) for up, n in zip(sources, dirty)):
            number = sources[0]
            assert number is not None
            stage = {"gradient": "backward", "clipped": "clip"}.get(kind, "moments")
            words = "It is close to its limit, and what is made of it is above its own and no further off."
            return finding_of(view, number, stage, parent(view.keys[number].name), words)
    return None


def _explains(view: View, up: int, number: int) -> bool:
    doubled = 2 if view.keys[number].kind == "exp_avg_sq" and view.keys[up].kind != "exp_avg_sq" else 1
    return bool(view.ratio[up] > NEAR and view.error[number] <= SPREAD * doubled * view.error[up])


def _clip(view: View, step: int) -> Finding | None:
    rows = [n for n in view.at(step) if view.keys[n].kind in ("norm", "clipped")]
    dirty = [n for n in rows if view.dirty(n)]
    if not dirty:
        return None
    tensors = [n for n in dirty if view.keys[n].kind == "clipped"]
    if tensors and (finding := _handed_down(view, step, tensors, ("gradient",))):
        return finding
    tensors.sort(key=lambda n: -view.error[n])
    number = tensors[0] if tensors else dirty[0]
    # One that is off by far more than all others drags the norm along, and with it what the others are multiplied by.
    one = len(tensors) == 1 or (len(tensors) > 1 and view.error[tensors[0]] > ALONE * view.error[tensors[1]])
    module = view.keys[number].name.rpartition(".")[0] if one else "optimizer"
    return finding_of(
        view, number, "clip", module, "The gradients are the same before clipping and not after it."
    )


def _moments(view: View, step: int) -> Finding | None:
    by_kind: dict[str, list[int]] = {kind: [] for kind in MOMENTS}
    for number in view.at(step):
        kind = view.keys[number].kind
        if kind not in NO_MOMENTS:  # other optimizers have other names for theirs
            by_kind.setdefault(kind, []).append(number)
    dirty = {kind: [n for n in rows if view.dirty(n)] for kind, rows in by_kind.items()}
    if not any(dirty.values()):
        return None
    if finding := _handed_down(
        view, step, [n for rows in dirty.values() for n in rows], ("gradient", "clipped")
    ):
        return finding
    if _both_scaled(view, by_kind):
        number = dirty["exp_avg"][0] if dirty["exp_avg"] else dirty["exp_avg_sq"][0]
        return finding_of(
            view, number, "clip", "optimizer", "Both moments are off as if the gradient had been scaled."
        )
    kinds = [kind for kind in dirty if dirty[kind]]
    names = {"exp_avg": "first moment", "exp_avg_sq": "second moment", "momentum": "momentum"}
    number = dirty[kinds[0]][0]
    words = f"The clipped gradients are the same, the {' and the '.join(names.get(k, k) for k in kinds)} not."
    whole = [n for kind in kinds for n in by_kind[kind]]
    return finding_of(
        view, number, "moments", _where(view, [n for k in kinds for n in dirty[k]], whole), words
    )


def _both_scaled(view: View, by_kind: dict[str, list[int]]) -> bool:
    """Whether every first moment is a times, and every second a squared times, the reference's: a clip inside a kernel."""
    first, second = (_not_nothing(view, by_kind[kind]) for kind in ("exp_avg", "exp_avg_sq"))
    if not first or not second:
        return False
    a, rest_a = _factors(view, first)
    b, rest_b = _factors(view, second)
    scale = float(np.median(a))
    tolerance = view.limit * max(LEAST, float(np.nanmax(view.floor[first + second])))
    return bool(
        abs(scale - 1) > tolerance
        and max(rest_a.max(), rest_b.max(), np.abs(a - scale).max(), np.abs(b - scale**2).max())
        <= tolerance * max(1, scale**2)
    )


def _update(view: View, step: int) -> Finding | None:
    rows = [n for n in view.at(step) if view.keys[n].kind in UPDATES]
    dirty = [n for n in rows if view.dirty(n)]
    if not dirty:
        return None
    plain = _not_nothing(view, [n for n in view.at(step) if view.keys[n].kind == "update"])
    names = {view.keys[n].name for n in dirty}
    if all(view.keys[n].kind == "unseen_update" for n in dirty):
        words = "Only rows that never had a gradient differ: there nothing but decay moves a weight."
        return finding_of(view, dirty[0], "update", _where(view, dirty, rows), words)
    if finding := _handed_down(view, step, dirty, ("gradient", "clipped", *MOMENTS)):
        return finding
    if (common := _rate_factor(view, plain, names)) is not None:
        number = max(dirty, key=lambda n: view.ratio[n])
        words = f"Every update is {common:.7g} times the reference's."
        return replace(finding_of(view, number, "schedule", "optimizer", words), factor=common)
    words = "Its forward, its gradient and its moments are the same, so the optimizer step is at fault, not the model."
    return finding_of(view, dirty[0], "update", _where(view, dirty, plain), words)


def _rate_factor(view: View, plain: Sequence[int], names: set[str]) -> float | None:
    """The factor by which every update is off, those included that are too coarse to be called different; else None.

    A tensor that is too coarse to tell by itself still leans one way: of an error in a random direction no more than
    an eighth, one over the root of 64 sums, lies along the reference. All of them together are sharp.
    """
    moved = np.array([view.keys[n].name in names for n in plain], dtype=bool)
    if not moved.any():
        return None
    scale, rest = _factors(view, plain)
    floor = _floors(view, plain)
    common = float(np.median(scale[moved]))
    rounding = view.limit * floor
    alike = (rest <= rounding) & (np.abs(scale - common) <= rounding)
    telling = np.abs(common - 1) > rounding  # sharp enough to show such a factor
    if alike.mean() < MOST or (telling.any() and alike[telling].mean() < MOST):
        return None
    weight = np.where(telling, 0.0, floor**-2.0)
    sharpness = 1 / np.sqrt(max(weight.sum(), 1e-300) * BUCKETS)
    if weight.any() and np.abs(common - 1) > view.limit * sharpness:
        leaning = float((weight * (scale - 1)).sum() / weight.sum())
        return common if abs(leaning - (common - 1)) < abs(leaning) else None
    return common if telling.sum() > 1 else None


def _where(view: View, dirty: Sequence[int], whole: Sequence[int]) -> str:
    """The one module that differs, or the optimizer where it is most of them."""
    guilty = {view.keys[n].name for n in dirty}
    among = {view.keys[n].name for n in _not_nothing(view, whole)}
    if len(guilty) > 1 and len(guilty) >= MOST * len(among):
        return "optimizer"
    return view.keys[dirty[0]].name.rpartition(".")[0]


def _factors(view: View, numbers: Sequence[int]) -> tuple[Any, Any]:
    mine, theirs = [view.rows[n][0] for n in numbers], [view.rows[n][1] for n in numbers]
    return factors(view.reference.sums[mine], view.candidate.sums[theirs])


def finding_of(view: View, number: int, stage: str, module: str, words: str) -> Finding:
    key = view.keys[number]
    tensor = key.name if key.kind in ("loss", "norm") else f"{key.kind.replace('_', ' ')} of {key.name}"
    ratio = float(view.error[number] / LEAST) if view.ratio[number] == 0 else float(view.ratio[number])
    return Finding(key.step, stage, module, tensor, view.leg.mode, ratio, words)
