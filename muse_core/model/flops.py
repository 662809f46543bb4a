"""How much a token costs."""

from __future__ import annotations

from torch import nn


def parameter_count(module: nn.Module) -> int:
    """Entries of all parameters, and of weights that a layer keeps in another form: integers, which are no parameters
    of torch. Such a layer says how many it has by an attribute ``untrained_weights``."""
    kept = sum(getattr(one, "untrained_weights", 0) for one in module.modules())
    return sum(parameter.numel() for parameter in module.parameters()) + kept


def active_parameters(module: nn.Module) -> int:
    """Parameters that a token passes: all of them, of experts only as many matrices as a token is expected to use. A
    layer of which a token uses a part says so by ``flops_per_token``."""
    whole, own = parameter_count(module), getattr(module, "flops_per_token", None)
    if own is not None:
        vectors = sum(parameter.numel() for parameter in module.parameters() if parameter.ndim < 2)
        return min(int(own()) // 2 + vectors, whole)
    return whole - sum(parameter_count(part) - active_parameters(part) for part in _partly_used(module))


def _partly_used(module: nn.Module) -> set[nn.Module]:
    """The outermost layers that say of themselves how much a token uses; one that stands in several places once, as
    its parameters count once."""
    if hasattr(module, "flops_per_token"):
        return {module}
    return {part for child in module.children() for part in _partly_used(child)}


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
