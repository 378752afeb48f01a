"""How small a fault may be: the same fault in steps of ten, from clearly seen to lost in rounding."""

from __future__ import annotations

from typing import Any

import torch

from ambidex import model, optim
from faults.planting import Fault, adamw, around, gradient, in_layer, with_built

SIZES = (1e-3, 1e-4, 1e-5, 3e-6, 1e-6)
FIRST = "model.layers.0.input_layernorm"  # the embedding is small, so its epsilon weighs
UP, DOWN, LAST = "model.layers.1.mlp.up_proj", "model.layers.0.mlp.down_proj", "model.layers.1"


def epsilon(by: float) -> Any:
    def change(t: Any) -> None:
        norm = t.model.get_submodule(FIRST)
        norm.epsilon *= 1 + by

    return with_built(change)


def one_sign(quantile: float) -> Any:
    def turned(g: torch.Tensor) -> torch.Tensor:
        flat = g.abs().flatten()
        place = int(flat.argsort()[min(len(flat) - 1, int(quantile * len(flat)))])
        signs = torch.ones_like(flat)
        signs[place] = -1
        return g * signs.view_as(g)

    return gradient(f"{DOWN}.weight", turned)


def _of(by: float) -> list[Fault]:
    return [
        Fault(f"a gradient x (1 + {by:g})", "backward", UP, gradient(f"{UP}.weight", lambda g: g * (1 + by))),
        Fault(f"an attention output x (1 + {by:g})", "forward", f"{LAST}.self_attn",
              in_layer("self_attn", 1, lambda x: x * (1 + by))),
        Fault(f"the rate x (1 + {by:g})", "schedule", "",
              around(optim.Optimizer, "step", lambda o, self, rate: o(self, rate * (1 + by)))),
        Fault(f"beta2 x (1 + {by:g})", "moments", "", adamw(betas=lambda b: (b[0], b[1] * (1 + by)))),
        Fault(f"RoPE's base x (1 + {by:g})", "forward", "model.layers.0.self_attn",
              around(model, "rotation_tables", lambda o, n, w, base: o(n, w, base * (1 + by)))),
    ]  # fmt: skip


LADDER = [
    *(fault for by in SIZES for fault in _of(by)),
    *(Fault(f"the first norm's epsilon x (1 + {by:g})", "forward", FIRST, epsilon(by)) for by in (1.0, 0.1, 0.01)),
    *(Fault(f"AdamW's epsilon x (1 + {by:g})", "update", "", adamw(epsilon=lambda e, by=by: e * (1 + by))) for by in (1.0, 0.1, 0.01)),
    *(Fault(f"one element's sign, the {name}", "backward", DOWN, one_sign(q))
      for name, q in (("largest", 1.0), ("median", 0.5), ("1 % smallest", 0.01))),
]  # fmt: skip
