"""From the tensors that differ to the part that is guilty: the first in the order in which a step computes.

Forward, a module whose input is the reference's and whose output is not is guilty; where the input itself is the
first that differs, whatever encloses the module made it. Backward it is the other way round, and the readers of a
module's output are those that make the gradient of it. Where a tensor that no module made has a wrong gradient and the module
that was seen to read it adds the right part, the other reader is the module around it: a by-pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ambidex.compare.align import View
from ambidex.compare.fingerprint import errors
from ambidex.compare.tracefile import AGAIN, Key

FORWARD = ("input", "output")
ALIKE = 1e-5  # relative: no more than rounding in fp32


def forward_order(view: View, step: int) -> list[int]:
    return [n for n in view.at(step) if view.keys[n].kind in FORWARD]


def guilty_forward(view: View, step: int) -> tuple[str, int] | None:
    """Module, and the number of its tensor, or None where the forward is clean."""
    for number in forward_order(view, step):
        if view.dirty(number):
            key = view.keys[number]
            if key.kind == "output" and not _given_other(view, step, key.name):
                return module_of(key.name), number
            return around(key.name), number
    return None


def _given_other(view: View, step: int, name: str) -> bool:
    """Whether what module ``name`` was given is nothing that a module put out in one of the runs, and is in the other.

    Then a function between the two modules is in one of the runs only; unless what it made is what the other's module did.
    """
    for one, other in ((view.reference, view.candidate), (view.candidate, view.reference)):
        row, missed = one.row.get(Key(step, "input", name)), Key(step, "input", name) in other.row
        if row is None or missed:
            continue
        rows = [n for key, n in other.row.items() if key.step == step and key.kind in FORWARD]
        size = one.statistics[row, 0]
        rows = [n for n in rows if other.statistics[n, 0] == size]
        apart = errors(one.sums[[row] * len(rows)], other.sums[rows], one.norms[[row] * len(rows)])
        return not bool((apart <= ALIKE).any())
    return False


def backward_order(view: View, step: int) -> Iterator[int]:
    """Gradients in the order in which backward makes them; a parameter's right after that of its module's output."""
    parameters = [n for n in view.at(step) if view.keys[n].kind == "gradient"]
    outputs = {view.keys[n].name for n in forward_order(view, step) if view.keys[n].kind == "output"}
    owner = {n: _recorded_owner(view.keys[n].name, outputs) for n in parameters}
    parts = _own_parts(view, step)
    waiting: list[
        tuple[str, list[int]]
    ] = []  # parameters of modules that a fused kernel never called: after their owner's inside
    for number in reversed(forward_order(view, step)):
        kind, name = view.keys[number].kind, view.keys[number].name
        while waiting and not f"{name}.".startswith(f"{waiting[-1][0]}."):
            yield from waiting.pop()[1]
        found = view.find(step, f"{kind}_gradient", name)
        if found is not None:
            yield found
        if kind == "output":
            own = [n for n in parameters if owner[n] == name]
            yield from (n for n in own if parent(view.keys[n].name) == name)
            yield from parts.get(name, ())
            waiting.append((name, [n for n in own if parent(view.keys[n].name) != name]))
    while waiting:
        yield from waiting.pop()[1]
    yield from (n for n in parameters if owner[n] is None)


def _own_parts(view: View, step: int) -> dict[str, list[int]]:
    """By module, the gradients of what it read, its own part of each."""
    found: dict[str, list[int]] = {}
    for number in view.at(step):
        if view.keys[number].kind == "own_gradient":
            found.setdefault(module_of(view.keys[number].name), []).append(number)
    return found


def guilty_backward(view: View, step: int, feeds: Mapping[str, Sequence[str]]) -> tuple[str, int] | None:
    for number in backward_order(view, step):
        if view.dirty(number):
            key = view.keys[number]
            if key.kind == "gradient":
                return parent(key.name), number
            if key.kind == "own_gradient":
                return module_of(key.name), number
            right = _own_parts(view, step)  # those before this one are, and whoever reads it comes before it
            if key.kind == "input_gradient":
                return (around if module_of(key.name) in right else module_of)(key.name), number
            readers = list(feeds.get(key.name, ()))
            left = [name for name in readers if name not in right]
            if not readers:
                return parent(key.name), number
            return common(left) if left else around(common(readers)), number
    return None


def lost_gradient(view: View, step: int) -> tuple[str, None] | None:
    """A parameter of which only one of the runs has a gradient in this step, unless another gradient before it is wrong."""
    lost = {
        key.name: None
        for one, other in ((view.reference, view.candidate), (view.candidate, view.reference))
        for key in one.keys
        if key.step == step
        and key.kind == "gradient"
        and key not in other.row
        and one.norms[one.row[key]] > 0
    }
    if not lost or not any(view.keys[n].kind == "gradient" for n in view.at(step)):
        return None
    outputs = [view.keys[n].name for n in forward_order(view, step) if view.keys[n].kind == "output"]
    place = {name: number for number, name in enumerate(outputs)}

    def depth(parameter: str) -> int:
        return place.get(_recorded_owner(parameter, set(outputs)) or "", -1)

    last = max(lost, key=depth)
    wrong = [
        depth(view.keys[n].name) for n in view.at(step) if view.keys[n].kind == "gradient" and view.dirty(n)
    ]
    return None if wrong and max(wrong) > depth(last) else (last, None)


def loss_rows(view: View, step: int) -> list[int]:
    """The loss, and the gradient that it gives to the last module that computes."""
    found = [n for n in view.at(step) if view.keys[n].kind == "loss"]
    outputs = [n for n in forward_order(view, step) if view.keys[n].kind == "output"]
    if outputs:
        head = view.find(step, "output_gradient", view.keys[outputs[-1]].name)
        found += [head] if head is not None else []
    return found


def module_of(name: str) -> str:
    """The module of what it put out second, or in a second call: "lstm" of "lstm#2"."""
    return name.partition(AGAIN)[0]


def around(name: str) -> str:
    """The module around that of a tensor; nothing where that is the model itself."""
    return module_of(name).rpartition(".")[0]


def parent(name: str) -> str:
    return around(name) or module_of(name)


def common(names: Sequence[str]) -> str:
    """The module that encloses all of ``names``; itself where there is one only."""
    parts = [name.split(".") for name in names]
    shared = []
    for level in zip(*parts):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def _recorded_owner(parameter: str, outputs: set[str]) -> str | None:
    """The innermost module around a parameter whose output was recorded: fused kernels never call the inner ones."""
    name = parent(parameter)
    while name not in outputs:
        if "." not in name:
            return None
        name = parent(name)
    return name
