"""One known error: the words that betray it, its cause and what to do."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fingerprint:
    """``id`` is stable. ``cause`` and ``fix`` are sentences; {0} and so on are what the pattern caught."""

    id: str
    pattern: str
    cause: str
    fix: str
    doctor: str = ""  # the doctor's cause id where it is one of those
