"""card.json, read: needs no torch, and believes nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ambidex.errors import Exit, Problem, Problems
from ambidex.escaping import one_line
from ambidex.files import read_small

CARD = "card.json"
FORMAT = 1  # what we write, and the newest that we read
LARGEST = 1 << 22  # bytes; ours are under 10 kB
_KINDS: dict[str, type] = {
    "config": dict,
    "data": dict,
    "device": dict,
    "build": dict,
    "resumes": list,
    "precision": str,
}
_INSIDE: tuple[tuple[str, str, type], ...] = (
    ("data", "hash", str),
    ("device", "name", str),
    ("data", "vocabulary_size", int),
)
PRECISIONS = ("fp32", "bf16", "fp16")


class NewerFormat(ValueError):  # noqa: N818  it is the file that is newer
    """A file of a later version of this project."""


def read_card(path: Path) -> dict[str, Any]:
    """The card of the run in folder ``path``. Raises Problems (exit 3) where there is none that can be read."""
    wanted = "a folder that ambidex train or ambidex.trace wrote"
    try:
        card = json.loads(read_small(path / CARD, LARGEST))
        check_card(card)
    except (FileNotFoundError, NotADirectoryError):
        raise Problems(
            Problem(
                "There is no run here.",
                found=f"{path}: no {CARD}" if path.exists() else f"{path}: no such folder",
                wanted=wanted,
                fix=_of_that_name(path) or "ambidex top lists the runs in a folder; ambidex train makes one",
            ),
            Exit.DATA,
        ) from None
    except NewerFormat as error:
        raise Problems(
            Problem("The run's card is of a newer format.", found=f"{path / CARD}: {error}", wanted=f"format {FORMAT}, which this ambidex knows",
                    fix="python -m pip install --upgrade ambidex"), Exit.DATA,
        ) from None  # fmt: skip
    except (OSError, ValueError, RecursionError) as error:
        found = f"{path / CARD}: {one_line((str(error).splitlines() or ['?'])[0])}"
        raise Problems(
            Problem("The run's card cannot be read.", found=found, wanted=wanted), Exit.DATA
        ) from None
    return card  # type: ignore[no-any-return]


def _of_that_name(path: Path) -> str:
    """`ambidex top` shows runs by their names alone, and so they are typed."""
    place = Path(os.environ.get("AMBIDEX_RUNS") or "runs", path)
    return f"did you mean {place}?" if (place / CARD).is_file() else ""


def check_card(card: Any) -> None:
    """Raise ValueError where what is there is not of the kind that it must be. What is not there is not missed here."""
    if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
        raise ValueError("no card of a run")
    written = card.get("format", FORMAT)
    if not isinstance(written, int) or isinstance(written, bool) or written < 1:
        raise ValueError("format is no number of a format")
    if written > FORMAT:  # whose fields may mean something else
        raise NewerFormat(f"format {written}")
    for name, kind in _KINDS.items():
        if not isinstance(card.get(name, kind()), kind):
            raise ValueError(f"{name} is no {kind.__name__}")
    for outer, name, kind in _INSIDE:
        if not isinstance(card.get(outer, {}).get(name, kind()), kind):
            raise ValueError(f"{outer}.{name} is no {kind.__name__}")
