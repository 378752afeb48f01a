"""card.json, read: needs no torch, and believes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ambidex.errors import Exit, Problem, Problems

CARD = "card.json"
LARGEST = 1 << 22  # bytes; ours are under 10 kB


def read_card(path: Path) -> dict[str, Any]:
    """The card of the run in folder ``path``. Raises Problems (exit 3) where there is none that can be read."""
    wanted = "a folder that ambidex train or ambidex.trace wrote"
    try:
        text = (path / CARD).read_bytes()
        if len(text) > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MB")
        card = json.loads(text)
        if not isinstance(card, dict) or not isinstance(card.get("config"), dict):
            raise ValueError("no card of a run")
    except FileNotFoundError:
        raise Problems(
            Problem("There is no run here.", found=f"{path}: no {CARD}", wanted=wanted), Exit.DATA
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        found = f"{path / CARD}: {str(error).splitlines()[0]}"
        raise Problems(
            Problem("The run's card cannot be read.", found=found, wanted=wanted), Exit.DATA
        ) from None
    return card
