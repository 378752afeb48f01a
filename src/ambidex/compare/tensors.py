"""Tensors as the recorder meets them: packed by a model in whatever way, and as numbers in numpy on the host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

LONGEST_KEY = 200  # characters of what a model is given by name
Array = NDArray[Any]


def version(values: Tensor) -> int:
    """How often a tensor was written to; tensors of inference mode do not count."""
    return 0 if values.is_inference() else values._version


def floating(values: Any) -> Iterator[Tensor]:
    """The floating-point and complex tensors in what a module takes or gives, however it is packed."""
    return (one for _, one in tensors_in("", values) if is_inexact(one))


def tensors_in(name: str, values: Any, within: frozenset[int] = frozenset()) -> Iterator[tuple[str, Tensor]]:
    """All tensors, with the key by which each is known, in a dictionary for one. ``within``: the ids of what holds
    ``values``, since a node may hold the one that it is held by."""
    if isinstance(values, Tensor):
        yield name, values
        return
    inside: Iterable[tuple[str, Any]]
    if isinstance(values, Mapping):
        inside = ((f"{name}.{key}"[:LONGEST_KEY], one) for key, one in values.items())
    elif isinstance(values, (tuple, list)):
        inside = ((name, one) for one in values)
    elif is_dataclass(values) and not isinstance(values, type):
        inside = (
            (f"{name}.{one.name}"[:LONGEST_KEY], getattr(values, one.name, None)) for one in fields(values)
        )
    else:
        return
    if id(values) not in within:
        for key, one in inside:
            yield from tensors_in(key, one, within | {id(values)})


def is_inexact(values: Tensor) -> bool:
    return values.is_floating_point() or values.is_complex()


def array(tensor: Tensor, *, copy: bool = False) -> Array:
    """The same numbers in numpy, on the host; bf16 and fp16, which numpy lacks or is slow in, exactly in fp32.

    A complex number is two: (...) -> (..., 2). A sparse gradient is filled up with the zeros that it stands for.
    """
    found = tensor.detach()
    if found.layout != torch.strided:
        found = found.to_dense()
    if found.is_complex():
        found = torch.view_as_real(found.resolve_conj())
    if found.is_floating_point() and found.dtype not in (torch.float32, torch.float64):
        found = found.float()
    numbers: Array = found.cpu().resolve_neg().contiguous().numpy()
    return numbers.copy() if copy else numbers


def in_transform() -> bool:
    """Whether torch.func is at work (grad, vmap), or a tracer: their tensors hold no numbers that could be read."""
    stack = getattr(getattr(torch._C, "_functorch", None), "peek_interpreter_stack", None)
    return (stack is not None and stack() is not None) or torch._C._get_tracing_state() is not None


def in_backward() -> bool:
    """Whether autograd is at work in this thread. torch has no public name for it."""
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1
