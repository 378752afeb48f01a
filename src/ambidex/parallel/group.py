"""The processes of a training, of which this is the lone one: nothing to agree on, nothing to add up.

torchrun starts several; each takes its rows of the global batch, and the sums over tokens are added (`together.py`).
Whoever has a group asks it the same things either way, so the loop does not know how many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ambidex.errors import Exit
from ambidex.parallel.place import Place

T = TypeVar("T")
Floats = NDArray[np.float64]


class Group:
    """All processes of a training. This one is alone."""

    def __init__(self, place: Place | None = None) -> None:
        self.place = place or Place()
        self.rank, self.size, self.writes = self.place.rank, self.place.size, self.place.writes
        self.step = 0  # for messages
        self.sent_bytes = 0  # of numbers given to be added up, so far

    def rows(self, total: int) -> slice:
        """Which of the ``total`` rows of a global batch are this process's: consecutive, as even as can be."""
        return slice(self.rank * total // self.size, (self.rank + 1) * total // self.size)

    def most_rows(self, total: int) -> int:
        return -(-total // self.size)

    def turns(self, items: Iterable[T]) -> Iterator[T]:
        """Every ``size``-th item, beginning with the ``rank``-th: together the processes take each one once."""
        return (item for number, item in enumerate(items) if number % self.size == self.rank)

    def sums(self, *numbers: float) -> list[float]:
        """Each number added up over the processes, in fp64, in the order of their ranks."""
        return [float(total) for total in self.gather(np.array(numbers, dtype=np.float64)).sum(axis=0)]

    def highest(self, number: int) -> int:
        return int(self.gather(np.array([number], dtype=np.float64)).max())

    def gather(self, numbers: Floats) -> Floats:
        """What each process has, one behind the other: (...) -> (size, ...)."""
        return numbers[None]

    def whole(self, part: Tensor, rows: int) -> Tensor:  # noqa: ARG002
        """The rows of all processes below each other; ``part`` holds this one's share of ``rows``."""
        return part

    def gradient_sum(self, model: nn.Module) -> GradientSum:  # noqa: ARG002
        """What adds the gradients of a model up while they are made."""
        return GradientSum()

    def from_writer(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the process that writes, JSON-able, in all of them; its Problems end all."""
        return work()

    def everyone(self, work: Callable[[], T]) -> T:
        """``work`` done in every process: where it fails in one, it fails in all, and says where."""
        return work()

    def begun(self) -> str:
        """The folder of the run that processes before these began under the same torchrun, or ""."""
        return ""

    def begin(self, run: str) -> None:
        """Note the folder for those that come after, should these be lost."""

    def agree(self, what: str, mine: Callable[[], Mapping[str, Any]], code: int = Exit.USAGE) -> None:
        """Raises Problems that name each process in which something is not as in the one that writes."""

    def agree_on_weights(self, model: nn.Module) -> None:
        """Raises Problems (exit 8) where a process has other weights, which all have made by themselves."""
        self.agree("weights", lambda: _checksums(model), Exit.LOST_PROCESS)

    def from_writer_tensors(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the process that writes."""


class GradientSum:
    """Adds up the gradients of all processes. This one has none to add."""

    @contextmanager
    def over(self, passes: int) -> Iterator[None]:  # noqa: ARG002
        """Around the ``passes`` backward passes of one step; afterwards every process has the sum."""
        yield


@torch.no_grad()
def _checksums(model: nn.Module) -> dict[str, int]:
    """A number for each weight that any other bits in it would change, by name."""
    return {
        name: int(weight.detach().contiguous().view(torch.int32).sum(dtype=torch.int64))
        for name, weight in model.named_parameters()
    }
