"""How this project says that something is wrong: what, what was found, what is wanted, what to type.

Every error that a user can cause is a ``Problems``: it carries all of them at once and the exit code that
`docs/reference` lists. The command line prints it; nothing a user does ends in a traceback.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ambidex.escaping import printable


class Exit(IntEnum):
    """Exit codes of every command but `doctor`, whose own codes stand in `device/doctor.py`."""

    DONE = 0
    DIFFERENT = 1
    USAGE = 2
    DATA = 3
    CANNOT_WRITE = 4
    LOSS_NOT_FINITE = 5
    OUT_OF_MEMORY = 6
    IN_USE = 7
    HUNG = 8
    LOST_PROCESS = (
        8  # the same to whoever started it: under torchrun another process is gone, silent or different
    )
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong. ``what`` is a sentence; the rest is left out of the text where it is empty."""

    what: str
    found: str = ""
    wanted: str = ""
    fix: str = ""

    def __str__(self) -> str:
        lines = [self.what]
        lines += [f"  {label}: {text}" for label, text in self._details() if text]
        return printable("\n".join(lines))

    def _details(self) -> tuple[tuple[str, str], ...]:
        return (("found", self.found), ("wanted", self.wanted), ("do", self.fix))


class NotThere(Problem):
    """A file or folder that was named is not there; where else it may be depends on who named it."""


class Problems(Exception):  # noqa: N818  it is not one error but all of them
    """All that is wrong, at once, with the exit code it ends in."""

    def __init__(self, problems: Problem | Iterable[Problem], exit_code: int = Exit.USAGE) -> None:
        self.problems: tuple[Problem, ...] = (problems,) if isinstance(problems, Problem) else tuple(problems)
        self.exit_code = int(exit_code)
        super().__init__(str(self))

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return f"error: {self.problems[0]}"
        return "\n".join(
            [f"{len(self.problems)} errors:", *(f"{n}. {p}" for n, p in enumerate(self.problems, 1))]
        )


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """``"did you mean 'steps'?"`` for the nearest known word, or the empty string where none is near."""
    import difflib  # slow to load, and needed for a slip alone

    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]!r}?" if near else ""
