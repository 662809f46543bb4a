"""The short convolution in float64, token by token and lag by lag."""

import torch
from torch import Tensor

from ..arguments import SHORTEST
from ..signatures import convolution_of


@convolution_of
def short_convolution(
    x: Tensor, taps: Tensor, initial: Tensor | None, resets: Tensor | None, heads: int, key_width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As `muse_kernels.short_convolution`, in float64, differentiable to any order."""
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
        y = sum(taps[lag] * held[-1 - lag] for lag in range(len(taps)))
        outputs.append(y * y.sigmoid())
        held = held[1:]
    query, key, value = torch.stack(outputs, dim=1).split(
        (heads * key_width, heads * key_width, channels - 2 * heads * key_width), dim=-1
    )
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))
    return _unit(query), _unit(key), value


def _unit(x: Tensor) -> Tensor:
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=SHORTEST)
