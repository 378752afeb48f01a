"""Ambidex: one transformer trainer for every PyTorch build.

``import ambidex`` imports no torch; each public name is fetched when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers; at run time `__getattr__` fetches each when it is first used
    from ambidex.api import Run, train
    from ambidex.compare.bring import trace
    from ambidex.device.doctor import doctor, gpu_usable
    from ambidex.errors import Problems

__version__ = "0.1.0"

_WHERE = {
    "train": "ambidex.api",
    "Run": "ambidex.api",
    "Problems": "ambidex.errors",
    "doctor": "ambidex.device.doctor",
    "gpu_usable": "ambidex.device.doctor",
    "trace": "ambidex.compare.bring",
}
__all__ = ["Problems", "Run", "__version__", "doctor", "gpu_usable", "trace", "train"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'ambidex' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
