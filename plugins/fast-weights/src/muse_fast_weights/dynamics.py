"""How fast a memory forgets and how strongly it writes, per head and token.

Shapes: B batch, N tokens, D width, H heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHT_STD = 0.5
"""Standard deviation of a weight's share of the pre-activation at the start, for inputs of unit mean square."""


class Dynamics(nn.Module):
    """log-decay g = −(base_decay + softplus(w·x + c)) ≤ 0 and rate β = σ(u·x + b) in [0, 1], in fp32 at least.

    c is set so that softplus(c) is log-spaced over the heads between the two ``initial_decay`` bounds; β starts
    around ``initial_rate``, or ``first_rate``. With ``own_decay`` false only the rate is learned here and Γ comes from
    a signal. With ``amplified`` g = −(base_decay + A softplus(w·x + c)): A starts even in (0, 16) and softplus(c)
    log-even in (0.001, 0.1), both learned (Mamba's Δ, as in Gated DeltaNet). β = most_rate σ(u·x + b).
    Source: mathematics §2, §3.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        generator: torch.Generator,
        *,
        initial_decay: tuple[float, float],
        base_decay: float,
        initial_rate: float | None,
        replaced: int | None,
        own_decay: bool,
        amplified: bool = False,
        most_rate: float = 1.0,
    ):
        super().__init__()
        self.most_rate = most_rate
        self.heads = heads
        self.base_decay = base_decay
        self.decay = _linear(width, heads, generator) if own_decay else None
        self.rate = _linear(width, heads, generator)
        slow, fast = torch.tensor(initial_decay, dtype=torch.float64)
        start = torch.logspace(slow.log10(), fast.log10(), heads, dtype=torch.float64)
        self.log_amplitude, learned = None, start
        if amplified and self.decay is not None:
            amplitude, learned = first_amplitude(heads, generator)
            self.log_amplitude = nn.Parameter(amplitude.log().to(self.decay.bias.dtype))
            start = amplitude * learned
        if initial_rate is None:
            # The Γ of a signal is not known here.
            rate = first_rate(start + base_decay, replaced if own_decay else None)
        else:
            rate = torch.full_like(start, initial_rate)
        with torch.no_grad():
            self.rate.bias.copy_((rate / most_rate).logit())
            if self.decay is not None:
                self.decay.bias.copy_(learned.expm1().log())

    def forward(self, x: Tensor, decay: Tensor | None) -> tuple[Tensor, Tensor]:
        """x (B, N, D), ``decay`` Γ ≥ 0 (B, N, heads of another layer) or None → g and β, each (B, N, H)."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.decay is None:
                return -regrouped(decay, self.heads).to(x.dtype) - self.base_decay, self.strength(self.rate(x))
            # One product, so that x is read once.
            weight = torch.cat((self.decay.weight, self.rate.weight))
            bias = torch.cat((self.decay.bias, self.rate.bias))
            forgetting, writing = F.linear(x, weight, bias).chunk(2, dim=-1)
            # −softplus(z); torch 2.13 miscompiles the backward pass of softplus for the strides of a kernel's
            # gradient (aot_eager: "view size is not compatible").
            forgotten = F.logsigmoid(-forgetting)
            if self.log_amplitude is not None:
                forgotten = self.log_amplitude.exp() * forgotten
            return forgotten - self.base_decay, self.strength(writing)

    def strength(self, writing: Tensor) -> Tensor:
        """β of its pre-activation."""
        rate = torch.sigmoid(writing)
        return rate if self.most_rate == 1.0 else self.most_rate * rate


def first_amplitude(heads: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A and softplus(c), each (H,), as Mamba-2 and Gated DeltaNet draw them."""
    low, high = math.log(0.001), math.log(0.1)
    amplitude = torch.rand(heads, generator=generator, dtype=torch.float64).mul(16).clamp(min=1e-2)
    step = torch.rand(heads, generator=generator, dtype=torch.float64).mul(high - low).add(low).exp()
    return amplitude, step


def first_rate(decay: Tensor, replaced: int | None) -> Tensor:
    """β (H,) for first Γ (H,): 1/2, at most K Γ where a write replaces one of K = ``replaced`` directions.

    A replacing write with an unrelated key leaves 1 − β/K of an answer on average; β ≤ K Γ makes that at least 1 − Γ,
    so memory ends by its decay, which the heads spread over lengths, and not by the next K/β tokens.
    """
    half = torch.full_like(decay, 0.5)
    return half if replaced is None else half.minimum(replaced * decay)


def regrouped(decay: Tensor, heads: int, name: str = "decay") -> Tensor:
    """Γ, or another signal called ``name``, (B, N, G) of G heads as (B, N, heads): means of equal groups, or repetition
    when G is the smaller number.

    Raises ValueError when neither number divides the other.
    """
    given = decay.shape[-1]
    if given % heads == 0:
        return decay.unflatten(-1, (heads, given // heads)).mean(-1)
    if heads % given == 0:
        return decay.repeat_interleave(heads // given, dim=-1)
    raise ValueError(f"the {name} signal has {given} heads, which neither divides nor is a multiple of heads = {heads}")


def _linear(width: int, heads: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(width, heads)
    nn.init.normal_(linear.weight, std=WEIGHT_STD / width**0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
