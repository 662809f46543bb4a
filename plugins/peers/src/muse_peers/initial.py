"""First values that the published mixers share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from muse_core.model.projections import projection


def log_amplitude(heads: int, generator: torch.Generator, low: float = 0.0, high: float = 16.0) -> nn.Parameter:
    """log A (H,), A even between the bounds."""
    amplitude = torch.rand(heads, generator=generator, dtype=torch.float64).mul(high - low).add(low).clamp(min=1e-2)
    return nn.Parameter(amplitude.log().to(torch.get_default_dtype()))


def step_bias(heads: int, generator: torch.Generator, low: float = 0.001, high: float = 0.1) -> nn.Parameter:
    """The bias b (H,) for which softplus(b) is log-even between the bounds."""
    span = math.log(high) - math.log(low)
    step = torch.rand(heads, generator=generator, dtype=torch.float64).mul(span).add(math.log(low)).exp()
    return nn.Parameter(inverse_softplus(step).to(torch.get_default_dtype()))


def inverse_softplus(x: Tensor) -> Tensor:
    """b with softplus(b) = x > 0."""
    return x + (-torch.expm1(-x)).log()


def orthogonal(inputs: int, outputs: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    """An orthogonal matrix times ``gain``, without bias."""
    linear = nn.Linear(inputs, outputs, bias=False)
    nn.init.orthogonal_(linear.weight, gain=gain, generator=generator)
    return linear


class LowRank(nn.Module):
    """x ↦ U act(V x) + c with V (rank × inputs) and U (outputs × rank)."""

    def __init__(
        self,
        inputs: int,
        rank: int,
        outputs: int,
        generator: torch.Generator,
        *,
        bias: Tensor | bool = False,
        zero: bool = False,
    ):
        """``bias``: c's first values, or whether there is one, then zero. ``zero`` starts V at zero and U orthogonal,
        as RWKV does; otherwise both keep the scale of their input."""
        super().__init__()
        self.down, self.up = projection(inputs, rank, generator), projection(rank, outputs, generator)
        if zero:
            nn.init.zeros_(self.down.weight)
            gain = 0.1 * max(1.0, rank / outputs) ** 0.5
            nn.init.orthogonal_(self.up.weight, gain=gain, generator=generator)
        self.bias = None
        if isinstance(bias, Tensor) or bias:
            first = bias if isinstance(bias, Tensor) else torch.zeros(outputs)
            self.bias = nn.Parameter(first.to(torch.get_default_dtype()))

    def forward(self, x: Tensor, activation: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """x (…, inputs) → (…, outputs)."""
        narrow = self.down(x)
        wide = self.up(narrow if activation is None else activation(narrow))
        return wide if self.bias is None else wide + self.bias.to(wide.dtype)
