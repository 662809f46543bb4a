"""Short convolutions in float64, token by token and lag by lag."""

import torch
from torch import Tensor

from ..arguments import SHORTEST
from ..signatures import causal_of, convolution_of


@convolution_of
def short_convolution(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.short_convolution`, in float64, differentiable to any order."""
    y = _sums(x, taps, initial, resets)
    keys = heads * key_width
    query, key, value = (y * y.sigmoid()).split((keys, keys, x.shape[2] - 2 * keys), dim=-1)
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
    return _unit(query), _unit(key), value


@causal_of
def causal_convolution(x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None) -> Tensor:
    """As `muse_kernels.causal_convolution`, in float64, differentiable to any order."""
    return _sums(x, taps, initial, resets)


def _sums(x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None) -> Tensor:
    x, taps = x.double(), taps.double()
    batch, tokens, channels = x.shape
    if initial is None:
        initial = x.new_zeros(batch, len(taps) - 1, channels)
    held = list(initial.double().unbind(1))
    outputs = []
    for t in range(tokens):
        if resets is not None:
            held = [torch.where(resets[:, t, None], 0.0, before) for before in held]
        held.append(x[:, t])
        outputs.append(sum(taps[lag] * held[-1 - lag] for lag in range(len(taps))))
        held = held[1:]
    return torch.stack(outputs, dim=1)


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=SHORTEST)
