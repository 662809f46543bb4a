"""Linear maps without bias: their first values, several that read one input, and the one that scores a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projection(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """A matrix of standard deviation gain/√inputs, which keeps the scale of what it is given, times ``gain``."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(linear.weight, std=gain * inputs**-0.5, generator=generator)
    return linear


def joined(x: Tensor, maps: Sequence[nn.Module]) -> Tensor:
    """What maps without bias make of x (…, n), side by side along the last axis.

    One product where all are torch's linear maps, so that x is read once; another module in the place of one, as a
    compressed map, is called, and so are maps on which somebody has set a hook.
    """
    if all(plain(one) for one in maps):
        return F.linear(x, torch.cat([one.weight for one in maps]))
    return torch.cat([one(x) for one in maps], dim=-1)


def each(x: Tensor, maps: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """What each of the maps makes of x (…, n): by one product on a GPU, where reading x again costs more than laying
    the weights end to end, and map by map on a CPU."""
    if x.is_cuda and all(isinstance(one, nn.Linear) for one in maps):
        return joined(x, maps).split([one.out_features for one in maps], dim=-1)
    return tuple(one(x) for one in maps)


def widened(x: Tensor, maps: Sequence[nn.Module]) -> Tensor:
    """What maps of few outputs make of x (…, n), side by side along the last axis, in fp32 at least.

    For rates and decays, of which exponentials are taken. Of x in half precision the product is in half precision, as
    published layers compute it, and the bias is added in fp32; a product in fp32 would read and keep a copy of x in
    fp32. Another module in the place of a linear map of torch's is called with such a copy.
    """
    with torch.autocast(x.device.type, enabled=False):
        if not all(plain(one) for one in maps):
            single = x.to(torch.promote_types(x.dtype, torch.float32))
            return torch.cat([one(single) for one in maps], dim=-1)
        weight = maps[0].weight if len(maps) == 1 else torch.cat([one.weight for one in maps])
        bias = None if maps[0].bias is None else torch.cat([one.bias for one in maps])
        if torch.finfo(x.dtype).bits >= 32:
            return F.linear(x, weight, bias)
        found = F.linear(x, weight.to(x.dtype)).to(torch.promote_types(weight.dtype, torch.float32))
        return found if bias is None else found + bias


def plain(one: nn.Module) -> bool:
    """Whether the map is torch's own and nobody has set a hook on it, so that its weight says all that it does."""
    return type(one) is nn.Linear and not one._forward_hooks and not one._forward_pre_hooks


ALIGNED = 8
"""The kernels of Hopper's tensor cores take rows of scores whose length is a multiple of so many numbers, 16 bytes of
bf16. For other lengths cuBLAS has those of the cores before, which take about twice as long."""
FEW = 4
"""So many vectors for each row of the matrix make its copy cheap beside the product."""


def scores(x: Tensor, weight: Tensor) -> Tensor:
    """x (…, n) times the transpose of ``weight`` (m, n): (…, m).

    A vocabulary of bytes has 257 entries: on a GPU, and for many vectors, the product is that of `aligned`.
    """
    if x.is_cuda and len(weight) % ALIGNED and x.numel() >= FEW * weight.numel():
        return aligned(x, weight)
    return F.linear(x, weight)


def aligned(x: Tensor, weight: Tensor) -> Tensor:
    """As `scores`, by a product with rows of zeros behind the matrix up to a multiple of 8, and what they give cut
    off."""
    return F.linear(x, F.pad(weight, (0, 0, 0, -len(weight) % ALIGNED)))[..., : len(weight)]
