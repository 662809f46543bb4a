"""Spectral measures of a model's Hamiltonians, and their distance.

Letters: B rows, N tokens, H heads, L energies. Source: mathematics §7.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_kernels import resolvent_diagonal

EDGE = 4.0
"""The grid of energies spans (−EDGE, EDGE): the free lattice's band is (−2, 2), and a potential of unit size widens
it."""
ENERGIES = 17
BROADENING = 0.5
"""η of the measure, the step of the grid: what lies between two energies is seen by both."""
ROWS, TOKENS = 1, 64
"""Of a micro-batch, that measures are taken on."""


def energies(like: Tensor, count: int = ENERGIES) -> Tensor:
    """(L,) evenly spaced, of the type and on the device of a real tensor."""
    return torch.linspace(-EDGE, EDGE, count, device=like.device, dtype=like.dtype)


def spectral_measure(
    potential: Tensor, decay: Tensor, hopping: Tensor, grid: Tensor, *, broadening: float = BROADENING
) -> Tensor:
    """ρ(λ) = π⁻¹ Im mean_i G_i(λ + iη) of each head, normalised to sum 1 over the grid: (H, L), differentiable.

    V, Γ ≥ 0 (B, N, H), |l| (H,), λ (L,); the mean is over sites and rows. Im G > 0, so ρ is positive.
    """
    diagonal = torch.complex(potential, -decay).permute(0, 2, 1)[:, :, None]  # (B, H, 1, N)
    coupling = hopping[:, None, None]
    energy = torch.complex(grid, torch.full_like(grid, broadening))[:, None]
    diagonal, coupling = torch.broadcast_tensors(diagonal.expand(-1, -1, len(grid), -1), coupling)
    green = resolvent_diagonal(diagonal, coupling, coupling, energy)
    density = green.imag.mean((0, 3)) / torch.pi
    return density / density.sum(-1, keepdim=True)


def wasserstein(first: Tensor, second: Tensor, grid: Tensor) -> Tensor:
    """W₁ of measures (…, L) on one even grid: the step times Σ |difference of the distribution functions|, (…)."""
    step = grid[1] - grid[0]
    return step * (first - second).cumsum(-1)[..., :-1].abs().sum(-1)


class Hamiltonians:
    """The Hamiltonians that the layers of a model have made in the last call: ``with`` it around the call."""

    def __init__(self, model: nn.Module):
        self.layers = {name: module for name, module in model.named_modules() if hasattr(module, "hamiltonian")}
        self._seen: dict[str, tuple[Tensor, dict[str, Tensor], Tokens]] = {}

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Notes what each layer is given."""
        self._seen.clear()
        hooks = [
            layer.register_forward_pre_hook(lambda _, given, name=name: self._note(name, given))
            for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _note(self, name: str, given: tuple[Any, ...]) -> None:
        x, _, signals, tokens = given
        self._seen[name] = (x, signals, tokens)

    def measures(self) -> dict[str, Tensor]:
        """Layer → (H, L) of the first rows and tokens of the call."""
        found = {}
        for name, (x, signals, tokens) in self._seen.items():
            potential, decay, hopping = self.layers[name].hamiltonian(
                _first(x), {key: _first(value) for key, value in signals.items()}, _few(tokens)
            )
            with torch.autocast(x.device.type, enabled=False):
                found[name] = spectral_measure(potential, decay, hopping, energies(potential))
        return found


def _first(x: Tensor) -> Tensor:
    return x[:ROWS, :TOKENS]


def _few(tokens: Tokens) -> Tokens:
    return Tokens(
        _first(tokens.positions),
        tokens.offset,
        None if tokens.resets is None else _first(tokens.resets),
        None if tokens.valid is None else _first(tokens.valid),
    )


def drift(first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor | None:
    """Mean W₁ over the layers that tokens of both have reached, and heads; None where there is none, as in models
    without a Hamiltonian."""
    distances = [
        wasserstein(measure, second[name], energies(measure)).mean()
        for name, measure in first.items() if name in second
    ]
    return torch.stack(distances).mean() if distances else None
