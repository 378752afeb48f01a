"""What training shows in a terminal: the plan, a progress bar, a line for each evaluation. Plain lines elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from ambidex.escaping import printable
from ambidex.rows import Row


def line(word: str, text: str) -> None:
    """One line of the plan or the end: a word in a column of its own, then a sentence."""
    with to_nobody_in_need():
        print(printable(f"{word:<9}{text}"), flush=True)


@contextmanager
def to_nobody_in_need() -> Iterator[None]:
    """A reader that has gone away, such as `head` or a closed terminal, is no reason to stop a training."""
    try:
        yield
    except OSError:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115


class Screen:
    """A bar on a terminal (standard error, so that standard output stays clean); nothing but lines in a log."""

    def __init__(
        self,
        steps: int,
        done: int,
        share: Callable[[Row], float] | None = None,
        work: Callable[[int], float] = float,
        *,
        silent: bool = False,
    ) -> None:
        """``share``: of one product's measured rate that a step reached; None or 0 where it is not known.

        ``work``: of the first so many steps, in any unit; steps are taken to be alike where nothing is said.
        """
        self._share, self._work = share, work
        self._bar = tqdm(
            total=steps, initial=done, unit="step", disable=silent or None, dynamic_ncols=True, file=sys.stderr,
            bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )  # fmt: skip
        self._steps = steps
        self._headed = False

    def __enter__(self) -> Screen:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()

    def show(self, row: Row) -> None:
        share = f", {reached:.0%} of peak" if self._share and (reached := self._share(row)) else ""
        self._bar.set_postfix_str(
            f"loss {row.loss:.3f}, {row.tokens_per_second:,.0f} tokens/s{share}", refresh=False
        )
        self._bar.update()
        if row.val_loss is None:
            return
        if not self._headed:
            self.write(f"{'step':>9}{'loss':>9}{'val_loss':>10}{'seconds':>10}{'tokens/s':>10}{'left':>8}")
            self._headed = True
        left = row.seconds * (self._work(self._steps) / self._work(row.step) - 1)
        self.write(
            f"{row.step:>9} {row.loss:>8.4f} {row.val_loss:>9.4f} {row.seconds:>9.1f}"
            f" {row.tokens_per_second:>9,.0f} {left:>6.0f}s"
        )

    def write(self, text: str) -> None:
        """A line above the bar."""
        with to_nobody_in_need():
            tqdm.write(printable(text))
            sys.stdout.flush()

    def tell(self, word: str, text: str) -> None:
        """As `line` does, while the bar is there."""
        self.write(f"{word:<9}{text}")
