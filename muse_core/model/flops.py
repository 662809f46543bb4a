"""How much a token costs."""

from __future__ import annotations

from torch import nn


def parameter_count(module: nn.Module) -> int:
    """Entries of all parameters, and of weights that a layer keeps in another form: integers, which are no parameters
    of torch. Such a layer says how many it has by an attribute ``untrained_weights``."""
    kept = sum(getattr(one, "untrained_weights", 0) for one in module.modules())
    return sum(parameter.numel() for parameter in module.parameters()) + kept


def active_parameters(module: nn.Module) -> int:
    """Entries of the matrices that a token passes, counted as ``flops_per_token`` counts them."""
    return flops_per_token(module) // 2


def flops_per_token(module: nn.Module) -> int:
    """Multiplications and additions of a token's forward pass through the matrices of ``module``, two per entry.

    A layer of which a token uses a part says so by a method ``flops_per_token()``. Left out: scans, convolutions and
    attention scores, which have no matrix or depend on the context's length.
    """
    own = getattr(module, "flops_per_token", None)
    if own is not None:
        return int(own())
    matrices = sum(parameter.numel() for parameter in module.parameters(recurse=False) if parameter.ndim >= 2)
    return 2 * matrices + sum(flops_per_token(child) for child in module.children())
