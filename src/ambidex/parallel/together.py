"""Several processes as one group: what they tell each other, what they add up, and what happens when one is lost.

What goes over the wire are numbers and JSON text: no pickle.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ambidex.errors import Exit, Problem, Problems
from ambidex.parallel.gradients import SharedGradientSum
from ambidex.parallel.group import Floats, GradientSum, Group, T
from ambidex.parallel.meeting import RUN, meet
from ambidex.parallel.place import Place

PREPARING = 3600.0  # seconds that one process may take longer than another before the first step
MOST_TOLD = 3  # differences of a process that are told
ANSWERING = 5.0  # seconds in which a process that is still there says so


@contextmanager
def joined(place: Place, timeout: float, device: str) -> Iterator[Group]:
    """The group of this process: alone, or once all the others are there. Left together, where all goes well."""
    if place.size == 1:
        yield Group(place)
        return
    group = Together(place, timeout, device)
    with torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
        yield group
        group.leave()


class Together(Group):
    """Several processes. ``timeout`` in seconds is how long one waits for another within a step."""

    def __init__(self, place: Place, timeout: float, device: str = "cpu") -> None:
        super().__init__(place)
        self._timeout = timeout
        patience = timedelta(seconds=max(timeout, PREPARING))
        # A wait for the GPUs that takes too long is then an exception here, rather than the end of the process.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        with self._guard("meeting the others"):
            self._of_all_attempts, self._store = meet(place, patience.total_seconds())
            dist.init_process_group(
                "gloo", store=self._store, rank=place.rank, world_size=place.size, timeout=patience
            )
            self._fast = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout))
        self._patient = dist.group.WORLD

    def leave(self) -> None:
        """Once all is written: what torchrun sees end first makes it stop the others."""
        with self._guard("parting"):
            self.from_writer(lambda: self._of_all_attempts.delete_key(RUN))
        self._exchange(None)
        self._fast = self._patient = None  # their threads end with the last reference
        dist.destroy_process_group()

    def begun(self) -> str:
        with self._guard("looking for a run that was begun"):
            return self.from_writer(
                lambda: self._of_all_attempts.get(RUN).decode() if self._of_all_attempts.check([RUN]) else ""
            )

    def begin(self, run: str) -> None:
        if self.writes:
            with self._guard("noting the run"):
                self._of_all_attempts.set(RUN, run)

    def gather(self, numbers: Floats) -> Floats:
        mine = torch.from_numpy(np.ascontiguousarray(numbers)).reshape(-1)
        everybodys = torch.empty(self.size, mine.numel(), dtype=mine.dtype)
        with self._guard("telling each other numbers"):
            dist.all_gather(list(everybodys), mine, group=self._fast)
        return everybodys.numpy().reshape(self.size, *numbers.shape)

    def whole(self, part: Tensor, rows: int) -> Tensor:
        found = torch.zeros(rows, *part.shape[1:], dtype=part.dtype)
        found[self.rows(rows)] = part
        self.add_up(found).wait()
        return found

    def gradient_sum(self, model: nn.Module) -> GradientSum:
        return SharedGradientSum(self.add_up, model)

    def add_up(self, numbers: Tensor) -> Pending:
        """Begin to replace ``numbers`` by their sum over the processes, in place."""
        self.sent_bytes += numbers.numel() * numbers.element_size()
        with self._guard("adding up"):
            work = dist.all_reduce(numbers, group=self._fast, async_op=True)
        return Pending(self, work)

    def from_writer(self, work: Callable[[], T]) -> T:
        message: dict[str, Any] = {}
        raised: BaseException | None = None
        if self.writes:
            try:
                message["value"] = work()
            except Problems as problems:
                raised, message["exit"] = problems, problems.exit_code
        message = self._broadcast(message)
        if raised:
            raise raised
        if "exit" in message:
            raise SystemExit(message["exit"])  # the process that writes has said why
        return message["value"]  # type: ignore[no-any-return]

    def everyone(self, work: Callable[[], T]) -> T:
        value, raised = None, None
        try:
            value = work()
        except Problems as problems:
            raised = problems
        codes = self._exchange(raised.exit_code if raised else None)
        if raised:
            raise raised
        failed = [rank for rank, code in enumerate(codes) if code is not None]
        if failed:
            raise SystemExit(codes[failed[0]])  # that process says why
        return value  # type: ignore[return-value]

    def agree(self, what: str, mine: Callable[[], Mapping[str, Any]], code: int = Exit.USAGE) -> None:
        everybodys = self._exchange(dict(mine()))
        first = everybodys[0]
        problems = [
            Problem(f"Rank {rank} of {self.size} has other {what} than rank 0.",
                    found=f"{name}: {str(one.get(name))[:100]}", wanted=f"{name}: {str(first.get(name))[:100]}",
                    fix="start every process with the same command, text and build, on the same kind of machine")
            for rank, one in enumerate(everybodys)
            for name in [n for n in first if one.get(n) != first[n]][:MOST_TOLD]
        ]  # fmt: skip
        if problems and self.writes:
            raise Problems(problems, code)
        if problems:
            raise SystemExit(int(code))  # the process that writes says why

    def from_writer_tensors(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            with self._guard("copying the state"):
                dist.broadcast(tensor, 0, group=self._fast)

    def _broadcast(self, message: object) -> Any:
        """The JSON-able message of rank 0 in every process."""
        content = json.dumps(message).encode() if self.writes else b""
        length = torch.tensor([len(content)])
        with self._guard("telling each other"):
            dist.broadcast(length, 0, group=self._patient)
            text = torch.zeros(int(length), dtype=torch.uint8)
            if self.writes:
                text = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            dist.broadcast(text, 0, group=self._patient)
        return json.loads(text.numpy().tobytes())

    def _exchange(self, message: object) -> list[Any]:
        """The JSON-able messages of all processes, in the order of their ranks."""
        content = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
        lengths = torch.zeros(self.size, 1, dtype=torch.int64)
        with self._guard("telling each other"):
            dist.all_gather(list(lengths), torch.tensor([len(content)]), group=self._patient)
            texts = torch.zeros(self.size, int(lengths.max()), dtype=torch.uint8)
            mine = torch.zeros(texts.shape[1], dtype=torch.uint8)
            mine[: len(content)] = content
            dist.all_gather(list(texts), mine, group=self._patient)
        return [
            json.loads(text[:length].numpy().tobytes())
            for text, length in zip(texts, lengths.flatten().tolist())
        ]

    @contextmanager
    def _guard(self, doing: str) -> Iterator[None]:
        """A connection that breaks, or a wait that takes too long, ends in a sentence with rank and step."""
        try:
            yield
        except RuntimeError as error:
            raise self._lost(doing, error) from None

    def _lost(self, doing: str, error: RuntimeError) -> Problems:
        missing = self._missing()
        who = f"rank {', '.join(map(str, missing))} did not answer; " if missing else ""
        words = str(error).strip().splitlines() or [type(error).__name__]
        return Problems(
            Problem(f"Rank {self.rank} of {self.size} lost the others at step {self.step + 1}, {doing}.",
                    found=f"{who}{words[0][:300]}",
                    wanted=f"an answer from every process within {self._timeout:g} s (--collective-timeout)",
                    fix="the same command continues from the last checkpoint with --resume; torchrun --max-restarts does so by itself"),
            Exit.LOST_PROCESS,
        )  # fmt: skip

    def _missing(self) -> list[int]:
        """The ranks that do not write into torchrun's store that they noticed it too; empty where it is out of reach."""
        found: list[int] = []

        def ask() -> None:
            try:
                self._store.set(f"lost/{self.rank}", "noticed")
                threading.Event().wait(ANSWERING / 2)
                found.extend(rank for rank in range(self.size) if not self._store.check([f"lost/{rank}"]))
            except (RuntimeError, AttributeError):
                return  # out of reach, or not yet there

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(ANSWERING)
        return list(found)


class Pending:
    """A sum on its way."""

    def __init__(self, group: Together, work: Any) -> None:
        self._group, self._work = group, work

    def wait(self) -> None:
        with self._group._guard("adding up"):
            self._work.wait()
