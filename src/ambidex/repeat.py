"""The command that trains a run again, made of its card. Needs no torch, and believes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ambidex.escaping import typed

# Where things lie, and what a repetition does not need.
PLACES = frozenset(
    {
        "out",
        "resume",
        "dry_run",
        "preset",
        "time",
        "data",
        "trace",
        "trace_states",
        "from_trace",
        "trace_band",
    }
)
DECIDED = frozenset({"precision", "threads"})  # by rule where nobody asked, and then as the card says
MADE_BY = ("preset", "default")


def command(card: Mapping[str, Any]) -> str:
    """The command that trains this run again: what was asked for, and what was decided by rule, now by name."""
    config, found = card["config"], card.get("origins")
    origins: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    words = ["ambidex", "train"]
    if isinstance(config.get("preset"), str) and config["preset"]:
        words += ["--preset", config["preset"]]
    data = config.get("data")
    if isinstance(data, list) and data:
        words += ["--data", *map(str, data)]
    for name, value in config.items():
        asked = not origins or str(origins.get(name, "default")).split(" ")[0] not in MADE_BY
        if name in DECIDED:
            words += _flag(name, card.get(name, value))
        elif (asked and name not in PLACES) or (name == "steps" and config.get("time")):
            words += _flag(name, value)
    return typed(words)


def _flag(name: str, value: object) -> list[str]:
    flag = "--" + str(name).replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if value is None or value == "" or isinstance(value, dict):
        return []
    return [flag, *map(str, value)] if isinstance(value, list) else [flag, str(value)]
