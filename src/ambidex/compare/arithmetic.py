"""Three ways to compute the same training with other roundings: what a measured floor is made of.

``exact`` computes in fp64 and knows every rounding of the run itself. ``nudged`` starts from weights that are off by
one unit in the last place: cheapest and best in fp32, and swallowed by the cast in bf16. ``noisy`` puts last-bit noise
on what every operator returns, forward and backward (Monte Carlo arithmetic: Parker, 1997), which bf16 needs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ambidex.randomness import uniform

LOW = (torch.float32, torch.bfloat16, torch.float16)
RELATIVE = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # half a unit of 1.0
MOVES_ONLY = {"clone", "empty", "_to_copy", "zeros_like", "empty_like", "cat", "stack", "index_select", "constant_pad_nd",
              "embedding", "repeat", "new_zeros", "new_empty", "full_like", "slice_backward", "select_backward"}  # fmt: skip

SUMS = {"sum", "mean", "native_batch_norm_backward", "cudnn_batch_norm_backward", "batch_norm_backward",
        "native_layer_norm_backward", "native_group_norm_backward"}  # fmt: skip  # the first argument is what is added


class Exact(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """In fp64 nothing may be rounded to less: a cast to a lower precision leaves an fp64 tensor as it is."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if (
            func._overloadpacket is torch.ops.aten._to_copy
            and args[0].dtype == torch.float64
            and kwargs.get("dtype") in LOW
        ):
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


class Noisy(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every result y becomes y (1 + u e): u uniform in [-1, 1], e half a unit in the last place of its type.

    With ``sums`` a sum gets what adding its terms one after the other may do to it: some kernels add thousands so,
    such as torch's gradients of a batch norm on a CPU where channels come last, and others in a tree.
    """

    def __init__(self, seed: int, *, sums: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.sums = seed, sums
        self._generators: dict[torch.device, torch.Generator] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket.__name__ in MOVES_ONLY or any(r.alias_info for r in func._schema.returns):
            return found  # nothing was computed, or it was written into a tensor that is already there
        name = func._overloadpacket.__name__
        terms = args[0] if self.sums and name in SUMS else None
        if self.sums and name == "convolution_backward":  # of three the last, the bias's, is a plain sum
            *products, bias = found
            return (*map(self._shaken, products), self._shaken(bias, args[0]))
        if isinstance(found, (tuple, list)):
            return type(found)(self._shaken(one, terms) for one in found)
        return self._shaken(found, terms)

    def _shaken(self, value: Any, terms: Any = None) -> Any:
        if isinstance(value, Tensor) and value.is_complex() and value.layout == torch.strided:
            return torch.view_as_complex(self._shaken(torch.view_as_real(value.resolve_conj())))
        if not isinstance(value, Tensor) or value.dtype not in RELATIVE or not value.numel():
            return value
        if value.layout == torch.sparse_coo:  # a gradient of rows that were looked up
            numbers = self._shaken(value._values())
            return torch.sparse_coo_tensor(
                value._indices(),
                numbers,
                value.shape,
                check_invariants=False,
                is_coalesced=value.is_coalesced(),
            )
        if value.layout != torch.strided or value.is_nested:
            return value
        generator = self._generators.get(value.device)
        if generator is None:
            generator = self._generators[value.device] = torch.Generator(value.device).manual_seed(self.seed)
        wide = value.float()
        noise = torch.rand(value.shape, generator=generator, device=value.device).mul_(2).sub_(1)
        size = wide if terms is None or terms.numel() <= value.numel() else _partial_sums(wide, terms)
        shaken = torch.addcmul(wide, size, noise, value=RELATIVE[value.dtype])
        return torch.where(wide.isfinite(), shaken, wide).to(
            value.dtype
        )  # the minus infinity of a mask stays one


def _partial_sums(value: Tensor, terms: Tensor) -> Tensor:
    """How large the partial sums are whose roundings add up in ``value``: the root of the sum of their squares.

    Of n terms of a mean and a spread, the sum so far is k times the mean and the root of k times the spread.
    """
    count = terms.numel() / value.numel()
    spread = terms.float().square().mean()
    return (value.square() * (count / 3) + spread * (count**2 / 2)).sqrt()


@torch.no_grad()
def nudge(model: nn.Module, seed: int) -> None:
    """Move every weight by one unit in the last place, up or down; one of 0 stays, from which all else is infinitely far."""
    for name, parameter in model.named_parameters():
        weight = torch.view_as_real(parameter) if parameter.is_complex() else parameter
        if not weight.is_floating_point():
            continue
        up = torch.from_numpy(uniform(seed, f"nudge/{name}", weight.numel()) < 0.5).view(weight.shape)
        toward = torch.where(up, torch.tensor(np.inf), torch.tensor(-np.inf)).to(weight)
        weight.copy_(torch.where(weight == 0, weight, torch.nextafter(weight, toward)))
