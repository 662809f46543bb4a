"""A causal resolvent in the place of the short convolution over queries, keys and values.

Shapes: B batch, N tokens, D width, C channels, G Hamiltonians of M = C / G channels each, H heads, K key width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.component import named
from muse_core.contracts import State, Tokens
from muse_core.model.context import Context
from muse_core.model.lattice import Lattice, applied, sites, total
from muse_fast_weights.options import MIN_BROADENING, FastWeightsOptions
from muse_kernels import unit_length


class ResolventMixing(nn.Module):
    """Queries, keys and values from SiLU(a ⊙ Re y + b ⊙ Im y), y_i = θ_i (x_i − l y_{i−1}), θ_i = 1/(V_i − iΓ_i − z −
    |l|² θ_{i−1}), over tokens of the same document; a and b are a gain each for a channel, x the projections.

    At the start a + ib = 1/θ̄ of the lattice without potentials far from a document's start, so that there a token
    passes with a gain of 1 and the one n tokens before with Re (−lθ)ⁿ, which decays. State, real with a trailing axis
    of 2 for complex numbers: ``theta`` (B, G, 2) and ``y`` (B, G, M, 2). Source: mathematics §1, §3.
    """

    def __init__(self, options: FastWeightsOptions, context: Context, channels: int):
        super().__init__()
        self.count = options.groups(channels)
        if channels % self.count:
            raise ValueError(f"hamiltonians = {self.count} does not divide the {channels} channels of q, k and v")
        self.potentials = nn.ModuleDict(
            {
                name: context.build(use, name=f"{context.name}.resolvent.potentials.{name}", heads=self.count)
                for name, use in named(options.potential).items()
            }
        )
        self.dynamics = Lattice(
            self.count, min_broadening=MIN_BROADENING, initial_broadening=options.initial_broadening
        )
        self.kernel = context.kernels.bind(
            "causal_resolvent_apply", sizes={"value": channels // self.count}, needs=("gradient",)
        )
        with torch.no_grad():
            gain = (1 / stationary(*self.dynamics()).conj()).repeat_interleave(channels // self.count)
        dtype = torch.get_default_dtype()
        self.real, self.imaginary = (nn.Parameter(part.to(dtype, copy=True)) for part in (gain.real, gain.imag))

    def forward(
        self,
        projected: Tensor,
        x: Tensor,
        signals: dict[str, Tensor],
        heads: int,
        key_width: int,
        state: State,
        tokens: Tokens,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], State]:
        """``projected`` (B, N, C), and x (B, N, D) for the potentials → query, key (B, N, H, K) of length 1 and value
        (B, N, H, rest), in the dtype of ``projected``, and the state."""
        potential, decay = self.diagonal(x, signals, tokens)
        with torch.autocast(x.device.type, enabled=False):
            matrix = sites(potential, decay, *self.dynamics(), tokens.resets)
            value = projected.unflatten(-1, (self.count, -1))
            y, _, new_state = applied(self.kernel, matrix, value, state, tokens.valid)
            y = y.flatten(2)
            mixed = F.silu(self.real * y.real + self.imaginary * y.imag).to(projected.dtype)
        keys = heads * key_width
        query, key, value = (
            part.unflatten(-1, (heads, -1)) for part in mixed.split((keys, keys, mixed.shape[-1] - 2 * keys), dim=-1)
        )
        return (unit_length(query), unit_length(key), value), new_state

    def diagonal(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        """V and Γ, each (B, N, G): sums over the potentials."""
        return total({name: term(x, signals, tokens) for name, term in self.potentials.items()}, x, self.count)


def stationary(energy: Tensor, hopping: Tensor) -> Tensor:
    """θ of the lattice without potentials far from its first site: |l|² θ² + z θ + 1 = 0 with Im θ > 0, (G,) complex128
    from z complex and |l| real (G,). Source: mathematics §1."""
    energy, square = energy.to(torch.complex128), hopping.double().square()
    root = (energy.square() - 4 * square).sqrt()
    one, other = (root - energy) / (2 * square), (-root - energy) / (2 * square)
    # The product of the two is 1/|l|²; the resolvent's is the smaller one.
    return torch.where(one.abs() < other.abs(), one, other)
