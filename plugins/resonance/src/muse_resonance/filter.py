"""The resonance filter.

Shapes: B batch, H heads, K key width, M value width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Period, State
from muse_resonance.basis import fourier_basis, random_basis, zeta_basis
from muse_resonance.options import ResonanceOptions


class Resonance(nn.Module):
    """W ← Re U diag(m) Uᴴ W with m_j = 1 / (1 + (threshold / r_j)^s), r_j = ‖u_jᴴ W‖ / max_i ‖u_iᴴ W‖.

    A second basis on the values' axis would change neither the amplitudes nor the result, being unitary, so there is
    none. Since 0 ≤ m ≤ 1 no application increases ‖W‖. ``before`` and the period's sums are not read: what counts is
    where the weights lie now. Stateless; gradients pass through the mask.

    U is fixed: the buffer ``basis`` (2, K, K), its real and imaginary parts, stored with the model.

    Metrics: ``share_filtered`` (modes with r below the threshold), ``modes`` (the number of the others, mean over
    heads) and ``energy_kept`` (‖W‖² after over before). Source: mathematics §3 "Memory filters".
    """

    def __init__(self, options: ResonanceOptions, context: Any):
        super().__init__()
        if context.key_width is None:
            raise ValueError("the memory layer does not say its key width; it must build filters with key_width = K")
        self.options = options
        self.register_buffer("basis", _basis(options.basis, context.key_width, context.generator))

    def forward(
        self, before: Tensor, after: Tensor, period: Period, state: State
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """``before`` and ``after`` (B, H, K, M) → filtered weights, no state, and metrics."""
        with torch.autocast(after.device.type, enabled=False):
            # Re U diag(m) Uᴴ W in real numbers: with F = [Re U, Im U] it is F diag(m, m) Fᵀ W.
            frame = self.basis.to(after.dtype).transpose(0, 1).flatten(1)  # (K, 2 K)
            modes = (frame.T @ after).unflatten(-2, (2, -1))  # (B, H, 2, K, M)
            energy = modes.square().sum((-3, -1))
            relative = energy / energy.amax(-1, keepdim=True).clamp_min(torch.finfo(energy.dtype).tiny)
            mask = self.mask(relative)
            filtered = frame @ (modes * mask[..., None, :, None]).flatten(-3, -2)
        return filtered, None, self.metrics(after, filtered, relative)

    def mask(self, relative: Tensor) -> Tensor:
        """m in [0, 1] from r² in [0, 1]."""
        logarithm = relative.clamp_min(torch.finfo(relative.dtype).tiny).log()
        return torch.sigmoid(self.options.sharpness * (0.5 * logarithm - math.log(self.options.threshold)))

    @torch.no_grad()
    def metrics(self, after: Tensor, filtered: Tensor, relative: Tensor) -> dict[str, Tensor]:
        """Of weights before and after, and r² (B, H, K)."""
        above = (relative >= self.options.threshold**2).to(after.dtype)
        power = after.square().sum().clamp_min(torch.finfo(after.dtype).tiny)
        return {
            "share_filtered": 1 - above.mean(),
            "modes": above.sum(-1).mean(),
            "energy_kept": filtered.square().sum() / power,
        }


def _basis(kind: str, size: int, generator: torch.Generator) -> Tensor:
    """(2, K, K): real and imaginary parts, rounded once from float64."""
    found = {
        "zeta": lambda: zeta_basis(size),
        "fourier": lambda: fourier_basis(size),
        "random": lambda: random_basis(size, generator),
    }[kind]()
    return torch.stack((found.real, found.imag)).to(torch.get_default_dtype())
