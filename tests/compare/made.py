"""Traces and run folders made by hand, for the judge and the readers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from ambidex.compare.fingerprint import fingerprint
from ambidex.compare.folder import Folder, Row
from ambidex.compare.tracefile import Key, Leg, Record, Table, Trace

FLOOR = 1e-6
BLOCKS = ("model.layers.0", "model.layers.1")
MATRICES = [f"{block}.{part}.weight" for block in BLOCKS for part in ("self_attn.q_proj", "mlp.up_proj")]
NORMS = [f"{block}.input_layernorm.weight" for block in BLOCKS]
FREE = Leg("free", 0, "fp32")


def keys_of(step: int) -> list[Key]:
    """One step of a model of two blocks, in the order of recording."""
    made = [Key(step, "tokens", "batch")]
    inside = ("input_layernorm", "self_attn.q_proj", "self_attn", "mlp.up_proj", "mlp", "")
    modules = [f"{block}.{part}".rstrip(".") for block in BLOCKS for part in inside]
    made += [Key(step, "output", name) for name in (*modules, "lm_head")]
    made += [Key(step, "output_gradient", name) for name in reversed((*modules, "lm_head"))]
    made.append(Key(step, "loss", "loss"))
    made += [Key(step, "gradient", name) for name in MATRICES + NORMS]
    made.append(Key(step, "norm", "gradient"))
    for kind in ("clipped", "exp_avg", "exp_avg_sq", "update", "steady_update"):
        made += [Key(step, kind, name) for name in MATRICES + NORMS]
    return made


def tensor(key: Key) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "little")
    return np.random.Generator(np.random.Philox(seed)).standard_normal(
        1 if key.kind in ("loss", "norm") else 300
    )


def table(
    changed: dict[Key, float] | None = None, steps: tuple[int, ...] = (0, 1), floor: float = FLOOR
) -> Table:
    """A recording in which the tensors of ``changed`` are off by so many times the floor, in a random direction."""
    record: Record = {}
    for step in steps:
        for key in keys_of(step):
            values = tensor(key)
            off = (changed or {}).get(key, 0.0)
            if off:
                noise = tensor(Key(step + 100, key.kind, key.name))
                values = values + noise * (off * floor * np.linalg.norm(values) / np.linalg.norm(noise))
            record[key] = fingerprint(values)
    made = Table.of(record)
    made.floor[:] = floor
    return made


def folder(name: str = "run", *, legs: dict[Leg, Table] | None = None, card: dict[str, Any] | None = None,
           rows: list[Row] | None = None, origin: str = "", precision: str = "fp32") -> Folder:  # fmt: skip
    trace = Trace(name, origin or name, precision, {FREE: table()} if legs is None else legs)
    return Folder(Path(name), {**CARD, **(card or {})}, rows or [], trace)


CARD: dict[str, Any] = {
    "config": {"seed": 0, "layers": 2}, "precision": "fp32", "weights_sha256": "a", "data": {"hash": "d"},
    "device": {"name": "cpu"}, "build": {"torch": "2.13.0+cpu"}, "threads": 1,
}  # fmt: skip
