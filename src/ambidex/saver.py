"""Saving beside training: a copy in host memory, then one thread that writes, reads back and tidies while steps go on.

What fails is said and kept from doing harm: training goes on while an older checkpoint is good, and the last save of a
run is waited for, tried twice, and an error if it fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from ambidex import checkpoint
from ambidex.checkpoint import Checkpoint, Damaged
from ambidex.errors import Exit, Problem, Problems
from ambidex.runs import Run

SPARE = 1.2  # of the snapshot's bytes must be free before it is taken


@dataclass(frozen=True)
class Failure:
    """A save that did not work, and the newest step that is still good, if there is one."""

    step: int
    problems: Problems
    good: int | None


class Saver:
    """Saves the checkpoints of one run. Leaving it waits for what is being written.

    ``keep``: how many of the newest stay; ``before_it_appears`` makes durable what belongs to a checkpoint;
    ``free_bytes`` says how much memory there is for a copy, None where nobody knows; ``tell`` shows a line.
    """

    def __init__(
        self, checkpoints: Path, keep: int, *, tell: Callable[[str, str], None],
        before_it_appears: Callable[[], None] = lambda: None,
        free_bytes: Callable[[], int | None] = lambda: None,
    ) -> None:  # fmt: skip
        self._checkpoints, self._keep, self._tell = checkpoints, keep, tell
        self._before, self._free_bytes = before_it_appears, free_bytes
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="saving")
        self._under_way: Future[Failure | None] | None = None
        self._copies: dict[str, Tensor] = {}  # host memory, taken once and used for every save
        self._last: tuple[Checkpoint, int | None] | None = None
        self._failed: Failure | None = None  # of the newest save, where it was written at once

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown(wait=True)

    def save(self, live: Checkpoint, best: int | None) -> None:
        """Copy ``live``, whose tensors training goes on to change, and have the copy written.

        Waits for a save that is still under way. Raises Problems: exit 4 where one failed and none is good, 5 where
        the weights are not finite. Where memory does not suffice for a copy, writes at once instead.
        """
        self.poll(waiting=True)
        if unsound := next((name for name, t in live.model.items() if not checkpoint.all_finite(t)), None):
            raise Problems(
                Problem(f"The weights after step {live.step} are not finite, so they are not saved.", found=unsound,
                        wanted="finite numbers", fix="a new run at a lower --learning-rate, or --precision fp32"),
                Exit.LOSS_NOT_FINITE,
            )  # fmt: skip
        copied = self._copy(live)
        if copied is None:
            self._last, self._failed = (live, best), self._write(live, best)
            self._judge(self._failed)
            return
        self._last, self._failed = (copied, best), None
        self._under_way = self._writer.submit(self._write, copied, best)

    def poll(self, waiting: bool = False) -> None:
        """Hear how the save under way went, if it has ended. Raises Problems (exit 4) where none is good any more."""
        if self._under_way is not None and (waiting or self._under_way.done()):
            failure = self._under_way.result()
            self._under_way = None
            self._judge(failure)

    def wait(self, seconds: float) -> None:
        """Give the save under way so long to end."""
        if self._under_way is not None:
            wait([self._under_way], timeout=seconds)

    def finish(self) -> None:
        """Wait for the last save; where it failed, try once more. Raises Problems (exit 4). No step may follow it."""
        failure = self._under_way.result() if self._under_way is not None else self._failed
        self._under_way = self._failed = None
        if failure is not None and self._last is not None:
            failure = self._write(*self._last)
        if failure is not None:
            raise _failed(failure)

    def _judge(self, failure: Failure | None) -> None:
        if failure is None:
            return
        if failure.good is None:
            raise _failed(failure)
        found = failure.problems.problems[0].found
        self._tell("NOT SAVED", f" step {failure.step}: {found}")
        self._tell(
            "",
            f"training goes on: {checkpoint.folder_name(failure.good)} is good, and the next save tries again",
        )

    def _write(self, copied: Checkpoint, best: int | None) -> Failure | None:
        """In the writer's thread. What was there before goes only after the new one was read back."""
        try:
            checkpoint.save(self._checkpoints, copied, self._before)
        except Problems as problems:
            return Failure(copied.step, problems, self._newest_good(copied.step))
        checkpoint.keep_only(self._checkpoints, self._keep, best, saved=copied.step)
        return None

    def _newest_good(self, below: int) -> int | None:
        for step in reversed(checkpoint.steps_in(self._checkpoints)):
            if step < below:
                try:
                    checkpoint.verify(self._checkpoints / checkpoint.folder_name(step))
                except Damaged:
                    continue
                return step
        return None

    def _copy(self, live: Checkpoint) -> Checkpoint | None:
        """The same on the host, in memory of its own; None where there is not enough of it."""
        parts = {"model": live.model, "optimizer": live.optimizer}
        missing = {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()
                   if f"{part}/{name}" not in self._copies}  # fmt: skip
        needed, free = sum(t.numel() * t.element_size() for t in missing.values()), self._free_bytes()
        if free is not None and needed * SPARE > free:
            return None
        try:
            for name, tensor in missing.items():
                self._copies[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        except (MemoryError, RuntimeError):
            self._copies.clear()
            return None
        return replace(live, **{part: self._copied(part, tensors) for part, tensors in parts.items()})  # type: ignore[arg-type]

    def _copied(self, part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            name: self._copies[f"{part}/{name}"].copy_(tensor.detach()) for name, tensor in tensors.items()
        }


class Bystander(Saver):
    """Saves nothing: another process writes the run, and this one trains beside it."""

    def save(self, live: Checkpoint, best: int | None) -> None: ...


def saver_of(
    run: Run, keep: int, *, tell: Callable[[str, str], None], free_bytes: Callable[[], int | None]
) -> Saver:
    """What saves a run's checkpoints, each once the rows up to it are on disk."""
    kind = Saver if run.writes else Bystander
    return kind(run.checkpoints, keep, tell=tell, before_it_appears=run.sync_metrics, free_bytes=free_bytes)


def _failed(failure: Failure) -> Problems:
    problem = failure.problems.problems[0]
    older = f"; {checkpoint.folder_name(failure.good)} is good" if failure.good is not None else ""
    return Problems(
        replace(problem, found=f"step {failure.step}: {problem.found}{older}"), failure.problems.exit_code
    )
