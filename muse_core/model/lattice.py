"""The lattice that a causal resolvent reads: tridiagonal Hamiltonians of potentials, energies and hoppings. Imported by
plugins.

Letters: B batch rows, N tokens, D width, H Hamiltonians, one for each head or group of channels, M values of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import State
from muse_core.model.states import last_valid, restored, stored

GOLDEN = (math.sqrt(5) - 1) / 2
BAND = 1.9
"""The free lattice's spectrum is (−2, 2); at its very edge the memory length diverges."""


class Lattice(nn.Module):
    """Energy z = E + iη and hopping |l| of each head, in fp32 at least: η = η_min + softplus(b) and |l| = e^λ.

    At the start E is spread evenly over the band, η log-spaced between two bounds and |l| = 1. ``added`` are two more
    bounds: from the first head to the last, η starts higher by rates log-spaced between them. Source: mathematics §1.
    """

    def __init__(
        self,
        heads: int,
        *,
        min_broadening: float,
        initial_broadening: tuple[float, float],
        added: tuple[float, float] | None = None,
    ):
        super().__init__()
        self.min_broadening = min_broadening
        head = torch.arange(heads, dtype=torch.float64)
        low, high = (math.log(bound) for bound in initial_broadening)
        # Multiples of the golden ratio, so that every part of the band has narrow and broad heads.
        broadening = torch.exp(low + (high - low) * torch.frac(0.5 + head * GOLDEN))
        if added is not None:
            first, last = (math.log(bound) for bound in added)
            broadening = broadening + torch.linspace(first, last, heads, dtype=torch.float64).exp()
        dtype = torch.get_default_dtype()
        self.energy = nn.Parameter((BAND * (2 * (head + 0.5) / heads - 1)).to(dtype))
        self.broadening = nn.Parameter((broadening - min_broadening).expm1().log().to(dtype))
        self.hopping = nn.Parameter(torch.zeros(heads, dtype=dtype))

    def forward(self) -> tuple[Tensor, Tensor]:
        """z (H,) complex, and |l| (H,)."""
        # Put together from real numbers, which a compiler fuses; it leaves arithmetic on complex ones alone.
        parts = (self.energy, self.min_broadening + F.softplus(self.broadening))
        return torch.view_as_complex(torch.stack(parts, dim=-1)), self.hopping.exp()


class Sites(NamedTuple):
    """The tridiagonal matrix H − z of every row and head."""

    diagonal: Tensor
    """a = V − iΓ, (B, H, N) complex."""
    coupling: Tensor
    """|l|, (H, 1) or (B, H, N) with zeros where documents start."""
    energy: Tensor
    """z, (H, 1) complex."""


def sites(potential: Tensor, decay: Tensor, energy: Tensor, hopping: Tensor, resets: Tensor | None) -> Sites:
    """From V and Γ (B, N, H), z complex and |l| real (H,), and where documents start, (B, N) bool."""
    coupling = hopping[:, None]
    if resets is not None:
        coupling = torch.where(resets[:, None], 0, coupling)
    # As the energies: a compiler fuses what is put together from real numbers.
    diagonal = torch.view_as_complex(torch.stack((potential, -decay), dim=-1))
    return Sites(diagonal.transpose(1, 2), coupling, energy[:, None])


def applied(
    kernel: Callable[..., Any], matrix: Sites, value: Tensor, state: State, valid: Tensor | None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """y_i = θ_i (v_i − l y_{i−1}) (B, N, H, M) and θ (B, N, H), both complex, of values v (B, N, H, M), and the state
    after each row's last valid token, real: ``theta`` (B, H, 2) and ``y`` (B, H, M, 2).

    ``kernel``: ``muse_kernels.causal_resolvent_apply``. ``state``: with what the call before returned, or None at the
    start; ``valid`` (B, N) bool.
    """
    (y, theta), _ = kernel(
        matrix.diagonal,
        matrix.coupling,
        matrix.coupling,
        matrix.energy,
        value.transpose(1, 2),
        initial=None if state is None else (restored(state["theta"]), restored(state["y"])),
    )
    theta, y = theta.transpose(1, 2), y.transpose(1, 2)
    kept = {
        name: last_valid(stored(found), None if state is None else state[name], valid)
        for name, found in (("theta", theta), ("y", y))
    }
    return y, theta, kept


def total(terms: Mapping[str, tuple[Tensor, Tensor]], x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """V and Γ, each (B, N, H), summed over the potentials; zeros for none, in fp32 at least, for x (B, N, D)."""
    if not terms:
        dtype = torch.promote_types(x.dtype, torch.float32)
        nothing = torch.zeros(*x.shape[:2], heads, dtype=dtype, device=x.device)
        return nothing, nothing
    (potential, decay), *others = terms.values()
    for more_potential, more_decay in others:
        potential, decay = potential + more_potential, decay + more_decay
    return potential, decay
