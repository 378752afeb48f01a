"""From the tensors that differ to the part that is guilty: the first in the order in which a step computes.

Forward, a module whose input is the reference's and whose output is not is guilty; where the input itself is the
first that differs, whatever encloses the module made it. Backward it is the other way round, and the readers of a
module's output are those that make the gradient of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from ambidex.compare.align import View

FORWARD = ("input", "output")


def forward_order(view: View, step: int) -> list[int]:
    return [n for n in view.at(step) if view.keys[n].kind in FORWARD]


def guilty_forward(view: View, step: int) -> tuple[str, int] | None:
    """Module, and the number of its tensor, or None where the forward is clean."""
    for number in forward_order(view, step):
        if view.dirty(number):
            key = view.keys[number]
            return (key.name if key.kind == "output" else parent(key.name)), number
    return None


def backward_order(view: View, step: int) -> Iterator[int]:
    """Gradients in the order in which backward makes them; a parameter's right after that of its module's output."""
    parameters = [n for n in view.at(step) if view.keys[n].kind == "gradient"]
    outputs = {view.keys[n].name for n in forward_order(view, step) if view.keys[n].kind == "output"}
    owner = {n: _recorded_owner(view.keys[n].name, outputs) for n in parameters}
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
            waiting.append((name, [n for n in own if parent(view.keys[n].name) != name]))
    while waiting:
        yield from waiting.pop()[1]
    yield from (n for n in parameters if owner[n] is None)


def guilty_backward(view: View, step: int, feeds: Mapping[str, Sequence[str]]) -> tuple[str, int] | None:
    for number in backward_order(view, step):
        if view.dirty(number):
            key = view.keys[number]
            if key.kind == "gradient":
                return parent(key.name), number
            if key.kind == "input_gradient":
                return key.name, number
            readers = list(feeds.get(key.name, ()))
            return (common(readers) if readers else parent(key.name)) or key.name, number
    return None


def loss_rows(view: View, step: int) -> list[int]:
    """The loss, and the gradient that it gives to the last module that computes."""
    found = [n for n in view.at(step) if view.keys[n].kind == "loss"]
    outputs = [n for n in forward_order(view, step) if view.keys[n].kind == "output"]
    if outputs:
        head = view.find(step, "output_gradient", view.keys[outputs[-1]].name)
        found += [head] if head is not None else []
    return found


def parent(name: str) -> str:
    return name.rpartition(".")[0] or name


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
