"""Dotted versions as they are written: torch's, a driver's, a Python's.

Small, since `packaging` takes 40 ms to import, a tenth of what the doctor may take in all.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TORCH = re.compile(
    r"v?(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?((?:a|b|rc)\d*)?(?:\.post\d+)?(?:\.?dev(\d{8}))?(?:\+([a-z0-9][a-z0-9._-]*))?"
)
_CUDA_TAG = re.compile(r"cu(\d{1,2})(\d)")


def numbers(text: str) -> tuple[int, ...]:
    """``"570.124.06"`` -> ``(570, 124, 6)``. Anything that is not a digit separates."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def at_least(found: str, wanted: str) -> bool:
    """Whether `found` is `wanted` or newer, as far as it goes: "525" is any 525, so at least "525.60.13"."""
    have, need = numbers(found), numbers(wanted)
    return have >= need[: len(have)]


def dotted(pair: tuple[int, int]) -> str:
    """``(12, 1)`` -> ``"12.1"``."""
    return f"{pair[0]}.{pair[1]}"


def pair(text: str | None) -> tuple[int, int] | None:
    """``"12.1"`` -> ``(12, 1)``; None where there are no two numbers."""
    found = numbers(text or "")
    return (found[0], found[1]) if len(found) > 1 else None


def cuda_of_tag(tag: str) -> str | None:
    """``"cu121"`` -> ``"12.1"``; None for every other local tag."""
    found = _CUDA_TAG.fullmatch(tag)
    return f"{found[1]}.{found[2]}" if found else None


@dataclass(frozen=True)
class TorchVersion:
    """``2.7.0.dev20250310+cu124``, taken apart."""

    base: str  # "2.7.0"
    series: str  # "2.7"
    pre: str = ""  # "a0", "rc1"
    dev: str = ""  # "20250310"
    local: str = ""  # "cu124"

    @classmethod
    def parse(cls, text: str) -> TorchVersion | None:
        """None for anything that is not a version of torch."""
        found = _TORCH.fullmatch(text.strip().lower())
        if not found:
            return None
        major, minor, patch, pre, dev, local = found.groups()
        series = f"{int(major)}.{int(minor)}"
        base = f"{series}.{int(patch or 0)}"
        return cls(base, series, pre or "", dev or "", local or "")

    @property
    def released(self) -> bool:
        """A release, and not a nightly, a candidate or a vendor's own."""
        return not self.pre and not self.dev

    def __str__(self) -> str:
        dev = f".dev{self.dev}" if self.dev else ""
        local = f"+{self.local}" if self.local else ""
        return f"{self.base}{self.pre}{dev}{local}"
