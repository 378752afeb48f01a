"""What a step is made of, as fingerprints: hooks on a model's modules for one step at a time, and none in between.

Kinds, in the order in which a step makes them: ``weight`` (step 0 only), ``tokens`` and ``targets``, ``input`` and
``output`` of modules, ``loss``, ``output_gradient``, ``input_gradient`` and ``own_gradient``, ``gradient`` of
parameters before clipping, ``norm``, ``clipped``, the moments, and the update: weights after minus weights before, in
fp64. An ``input_gradient`` is what all readers of a tensor give it, an ``own_gradient`` what the module itself adds to
it. What a module puts out second, in a tuple or when it is called again in one forward, is named ``NAME#2``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ambidex import products
from ambidex.compare.fingerprint import Fingerprint, Sketch, fingerprint
from ambidex.compare.tensors import (
    Array,
    array,
    floating,
    in_backward,
    in_transform,
    is_inexact,
    tensors_in,
    version,
)
from ambidex.compare.tracefile import AGAIN, Key, Record
from ambidex.parallel.group import Group

STEADY = 0.1  # a share of the second moment's root: elements well below it move by their sign alone
LOW = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class Recorder:
    """Records chosen steps of a training. ``begin``, ``gradients``, ``stepped`` are called around every step."""

    def __init__(
        self,
        model: nn.Module,
        moments: Callable[[], Mapping[str, Tensor]],
        steps: Collection[int],
        loss_scale: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.model, self.moments, self.steps, self.loss_scale = model, moments, steps, loss_scale
        self.record: Record = {}
        self.feeds: dict[str, list[str]] = {}
        self.shapes: dict[str, list[int]] = {}
        self.pieces: dict[str, int] = {}  # parts, a micro-batch each, that a tensor of ``shapes`` came in
        self.group = Group()  # the processes that share a step's batch
        self.recording = False
        self.watches_modules = True  # off where the model is compiled: hooks would have it compiled anew
        self.replaced: set[str] = set()  # modules whose output's gradient somebody else accounts for
        self._step = self._batch = 0  # rows of the whole batch
        self._sketches: dict[tuple[str, str], Sketch] = {}
        self._seen: dict[tuple[str, str], int] = {}  # elements of this step so far, by kind and module
        self._made: dict[tuple[int, int], tuple[str, Tensor, int]] = {}  # this forward's outputs, kept alive
        self._handed: dict[int, Tensor] = {}  # views that readers were given in this forward
        self._calls: dict[tuple[str, str], int] = {}  # tensors of this forward so far, by kind and module
        self._same: dict[str, str] = {}  # modules that pass on, untouched, what one inside them put out
        self._entered = False  # whether the model was called in this step, or only modules of it
        self._evaluates = False  # the present forward
        self.low = ""  # "bf16" or "fp16" where any module put out such numbers
        self._before: dict[str, Array] = {}
        self._projections = {
            id(m.weight): name for name, m in model.named_modules() if isinstance(m, nn.Linear)
        }
        self.not_recorded: dict[str, None] = {}  # in words, each once
        self._hooks: list[RemovableHandle] = []

    def begin(self, step: int, inputs: Array | None = None, targets: Array | None = None) -> None:
        """Call before the forward of step number ``step``; ``inputs`` and ``targets`` are the whole batch's tokens."""
        self._step, self.recording = step, step in self.steps
        if not self.recording:
            return
        self._sketches, self._seen, self._made, self._same, self._calls = {}, {}, {}, {}, {}
        self._entered = self._evaluates = False
        self._batch = len(inputs) if inputs is not None else 0
        self._before = {name: array(weight, copy=True) for name, weight in self._weights()}
        if step == 0:
            for name, weight in self.model.named_parameters():  # those too that are not trained
                if Key(0, "weight", name) not in self.record:  # it is there where the step is begun anew
                    self._whole("weight", name, array(weight))
        for kind, tokens in (("tokens", inputs), ("targets", targets)):
            if tokens is not None:
                self._whole(kind, "batch", tokens)
        self._attach()

    def gradients(
        self,
        loss: float | None,
        unclipped: Mapping[str, Array] | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """Call when all gradients of the step are there and before they are clipped, or give them as they were then."""
        if not self.recording:
            return
        self._detach()
        self._add_processes()
        passed_on: dict[str, list[str]] = {}
        for outer, inner in self._same.items():
            passed_on.setdefault(inner, []).append(outer)
        for (kind, name), sketch in self._sketches.items():
            for one in (name, *(passed_on.get(name, ()) if kind.startswith("output") else ())):
                self.record[Key(self._step, kind, one)] = sketch.fingerprint()
        if loss is not None:
            self._whole("loss", "loss", np.array([loss]))
        self.gradients_of(only, unclipped)

    def gradients_of(
        self, only: Collection[str] | None, unclipped: Mapping[str, Array] | None = None
    ) -> None:
        """Those of some parameters, of one optimizer of several, say; of all where ``only`` is None."""
        for name, weight in self._weights():
            if only is not None and name not in only:
                continue
            if unclipped is not None and name in unclipped:
                self._whole("gradient", name, unclipped[name])
            elif weight.grad is not None:
                self._whole("gradient", name, array(weight.grad) * (1.0 / self.loss_scale()))

    def stepped(self, norm: float | None, given: Mapping[str, Fingerprint] | None = None) -> None:
        """Call after the optimizer's step, while the gradients are still there, or with what they were when it was ``given`` them."""
        if not self.recording:
            return
        if norm is not None:
            self._whole("norm", "gradient", np.array([norm]))
        moments = {name: array(moment) for name, moment in self.moments().items()}
        for name, weight in self._weights():
            if given is not None and name in given:
                self.record[Key(self._step, "clipped", name)] = given[name]
                self.shapes[f"clipped {name}"] = list(array(weight).shape)
            elif given is None and weight.grad is not None:
                self._whole("clipped", name, array(weight.grad))
        for name, moment in moments.items():
            kind, _, parameter = name.partition(".")
            self._whole(kind, parameter, moment)
        for name, weight in self._weights():
            if name not in self._before or array(weight).shape != self._before[name].shape:
                continue  # new in this step, or trained only since
            update = array(weight).astype(np.float64) - self._before[name]
            self._whole("update", name, update)
            second = moments.get(f"exp_avg_sq.{name}")
            if second is not None:
                self._split_update(name, update, second)
        self.recording, self._before, self._made, self._handed = False, {}, {}, {}

    def end(self) -> None:
        """Nothing more comes: a step that was begun and not finished is dropped."""
        self._detach()
        self.recording = False

    def take_back(self) -> None:
        """Drop what there is of the present step, which is to be begun anew."""
        self._detach()
        for key in [key for key in self.record if key.step == self._step]:
            if self._step or key.kind != "weight":
                del self.record[key]

    def enter_late(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """For a step that is begun anew as its first forward comes in, too late for the hook that was attached."""
        if self._hooks:
            self._enter(module, arguments, named)

    def _split_update(self, name: str, update: Array, second: Array) -> None:
        """Where the second moment is next to nothing AdamW moves by sign alone, which rounding can turn over.

        ``steady_update`` weighs such elements down; ``unseen_update`` is that of rows that never had a gradient,
        where only decay can move a weight.
        """
        root = np.sqrt(second.astype(np.float64))
        usual = float(np.sqrt(np.mean(np.square(root))))
        if usual > 0:
            self._whole("steady_update", name, update * (root / (root + STEADY * usual)))
        if second.ndim == 2:
            unseen: Array = np.logical_not(second.any(axis=1))
            if unseen.any():
                self._whole("unseen_update", name, update * unseen[:, None])

    def _add_processes(self) -> None:
        """What each process has seen of its rows becomes what there is of the whole batch."""
        if self.group.size == 1 or not self._sketches:
            return
        parts = self.group.gather(np.stack([sketch.numbers() for sketch in self._sketches.values()]))
        for number, (kind, name) in enumerate(list(self._sketches)):
            whole = self._sketches[kind, name] = Sketch.of_parts(parts[:, number])
            shape = self.shapes[f"{kind} {name}"]
            shape[0] = whole.elements // max(1, math.prod(shape[1:]))
            self.pieces[f"{kind} {name}"] *= self.group.size

    def account(self, kind: str, name: str, values: Tensor, start: int) -> None:
        """Add a part of a tensor whose first element is number ``start`` of the whole batch's."""
        begun = (kind, name) in self._sketches
        sketch = self._sketches.setdefault((kind, name), Sketch())
        factor = 1.0 / self.loss_scale() if kind.endswith("gradient") else 1.0
        numbers = array(values)
        sketch.add(numbers, 2 * start if values.is_complex() else start, factor)
        tensor = f"{kind} {name}"
        rows = self.shapes[tensor][0] if begun else 0
        shape = list(numbers.shape) or [1]
        self.shapes[tensor] = [rows + shape[0], *shape[1:]]
        self.pieces[tensor] = self.pieces[tensor] + 1 if begun else 1

    def maker_of(self, values: Tensor) -> str | None:
        """The module that put out this very tensor, or a view of all of it, in the present forward."""
        made = self._made.get((values.data_ptr(), values.numel()))
        if made is None or not values.numel() or made[2] != version(values):  # written to since: another
            return None
        if values.is_inference():  # nobody counts how often it was written to
            return None
        return made[0]

    def _whole(self, kind: str, name: str, values: Array) -> None:
        self.record[Key(self._step, kind, name)] = fingerprint(values)
        self.shapes[f"{kind} {name}"] = list(values.shape)

    def _weights(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.model.named_parameters() if weight.requires_grad]

    def _attach(self) -> None:
        if not self.watches_modules:
            return
        self._hooks.append(self.model.register_forward_pre_hook(self._enter, with_kwargs=True))
        products.tell(self._multiplied)
        for name, module in self.model.named_modules():
            if name and not isinstance(module, (nn.ModuleList, torch.jit.ScriptModule)):
                if next(module.children(), None) is None:
                    self._hooks.append(module.register_forward_pre_hook(self._enters(name), with_kwargs=True))
                self._hooks.append(module.register_forward_hook(self._leaves(name), with_kwargs=True))

    def _detach(self) -> None:
        if self._hooks:
            products.tell(None)
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _enter(self, module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """A micro-batch comes in. What the model is really given is recorded, whatever was drawn for it."""
        if in_backward() or in_transform():
            return
        self._entered = True
        self._evaluates = not torch.is_grad_enabled()  # between two steps, say: no part of a training
        if self._evaluates:
            return
        self._made.clear()
        self._handed.clear()
        self._calls.clear()
        for name, tokens in _given("model", arguments, named):
            if self._can_record(name, tokens):
                self.account("tokens", name, tokens, self._place("tokens", name, tokens))

    def _enters(self, name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if self._looks_away():
                return None
            changes = getattr(module, "inplace", False)
            arguments = tuple(self._read(name, one, changes=changes) for one in arguments)
            return arguments, {key: self._read(name, one, changes=changes) for key, one in named.items()}

        return hook

    def _read(self, name: str, values: Any, *, changes: bool) -> Any:
        """The same tensor, or a view of it, whose gradient is this reader's part alone: others may read it too."""
        if not isinstance(values, Tensor) or not is_inexact(values) or not self._can_record(name, values):
            return values
        if self.maker_of(values) is None:  # the sum of two branches, or a function's result
            self._see("input", self._numbered("input", name), values)
        if (
            changes
            or not values.requires_grad
            or not torch.is_grad_enabled()
            or isinstance(values, nn.Parameter)
        ):
            return values
        one = self._numbered("own", name)
        start = self._place("own", one, values)
        view = values.view_as(values)
        view.register_hook(lambda found: self._account_gradient("own_gradient", one, found, start))  # type: ignore[no-untyped-call]
        self._handed[id(view)] = view
        return view

    def _leaves(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            if self._looks_away():
                return
            for source in floating((arguments, named)):
                if self._can_record(name, source):
                    self._came_in(name, source)
            for values in floating(output):
                if self._can_record(name, values):
                    self._came_out(name, values)

        return hook

    def _multiplied(self, x: Tensor, weights: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> None:
        """A product by a projection's weight: `products.py` joins several, so that their modules are never called."""
        if self._looks_away():
            return
        for weight, product in zip(weights, found):
            name = self._projections.get(id(weight))
            if name is not None:
                if self.maker_of(x) is None:
                    self._see("input", self._numbered("input", name), x)
                self._came_in(name, x)
                self._came_out(name, product)

    def _looks_away(self) -> bool:
        """In a forward without gradients, or in one that is repeated to save memory."""
        if self._evaluates or in_backward() or in_transform():
            return True
        # Between two steps, by modules of a model that is not called itself.
        return not (self._entered or torch.is_grad_enabled())

    def _can_record(self, name: str, values: Tensor) -> bool:
        """Whether a tensor lies in memory as one block of its shape's numbers; what does not is said."""
        if values.is_nested:
            form = "nested"
        elif values.layout != torch.strided:
            form = str(values.layout).removeprefix("torch.").removeprefix("_")
        elif values.is_quantized:
            form = "quantized"
        else:
            return True
        self.not_recorded[f"{form} tensors that {name} takes or gives"] = None
        return False

    def _came_in(self, name: str, values: Tensor) -> None:
        maker = self.maker_of(values)
        if maker is not None and maker != name:
            readers = self.feeds.setdefault(maker, [])
            if name not in readers:
                readers.append(name)

    def _came_out(self, name: str, values: Tensor) -> None:
        inner = self.maker_of(values)
        one = self._numbered("output", name)
        if inner is None:
            self._made[values.data_ptr(), values.numel()] = one, values, version(values)
            self.low = self.low or LOW.get(values.dtype, "")
            self._see("output", one, values)
        else:
            self._same[one] = inner

    def _numbered(self, kind: str, name: str) -> str:
        count = self._calls[kind, name] = self._calls.get((kind, name), 0) + 1
        return name if count == 1 else f"{name}{AGAIN}{count}"

    def _place(self, kind: str, name: str, values: Tensor) -> int:
        """The number, in the whole batch's tensor, of the first element of this micro-batch's."""
        before_us: int = self.group.rows(self._batch).start
        each = values.numel() // max(1, values.shape[0]) if values.ndim else 1
        start = self._seen.get((kind, name), before_us * each)
        self._seen[kind, name] = start + values.numel()
        return start

    def _see(self, kind: str, name: str, values: Tensor) -> None:
        start = self._place(kind, name, values)
        self.account(kind, name, values, start)
        if values.requires_grad and not self._written_over(values):
            values.register_hook(  # type: ignore[no-untyped-call]
                lambda found: self._account_gradient(f"{kind}_gradient", name, found, start)
            )

    def _written_over(self, values: Tensor) -> bool:
        """Whether a hook more would end the process: on a view of ours, which has one, written to whole and in part since
        (torch 2.13: a segmentation fault in `register_hook`; to be removed where a torch raises or hooks)."""
        return id(values) in self._handed and version(values) >= 2

    def _account_gradient(self, kind: str, name: str, found: Tensor | None, start: int) -> None:
        if found is not None and name not in self.replaced:  # None: one of several products, unused
            self.account(kind, name, found, start)


def _given(name: str, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What a model is given: whatever is exact, such as tokens and masks, and a tensor of other numbers that comes first.

    Further floating-point tensors may have been computed, and may then differ in their last bits.
    """
    keyed = dict(sorted(named.items()))  # the caller's order says nothing
    found = list(tensors_in(name, (arguments, keyed)))
    exact = [not is_inexact(values) for _, values in found]
    calls: dict[str, int] = {}
    for number, (one, values) in enumerate(found):
        if exact[number] or (number == 0 and (one == name or not any(exact))):
            calls[one] = calls.get(one, 0) + 1
            yield one if calls[one] == 1 else f"{one}{AGAIN}{calls[one]}", values
