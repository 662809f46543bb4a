"""Measures of the resolvent layer."""

from __future__ import annotations

import torch
from torch import Tensor

OVERDAMPED = 10.0


@torch.no_grad()
def measures(
    potential: Tensor, decay: Tensor, theta: Tensor, hopping: Tensor, valid: Tensor | None
) -> dict[str, Tensor]:
    """Over valid tokens: ``decay`` Γ with ``decay_min`` and ``decay_max``; ``overdamped``, the share with Γ > 10 |V|;
    ``lyapunov`` −½ mean log|p θ²| per token, its mean over heads; ``memory_length_max``, the inverse of the smallest.

    V, Γ, θ (B, N, H); ``hopping`` |l| (H,), p = |l|²; ``valid`` (B, N). Source: mathematics §1, §2.
    """
    if valid is None:
        valid = torch.ones(decay.shape[:2], dtype=torch.bool, device=decay.device)
    weight = (valid / valid.sum().clamp(min=1)).to(decay.dtype)
    chosen = valid[..., None]
    # Half the log of the square, since torch's modulus of complex numbers takes twice as long on a CPU.
    log_theta = 0.5 * (theta.real.square() + theta.imag.square()).log()
    lyapunov = -hopping.log() - torch.einsum("bn,bnh->h", weight, log_theta)
    return {
        "decay": torch.einsum("bn,bnh->h", weight, decay).mean(),
        "decay_min": torch.where(chosen, decay, torch.inf).amin(),
        "decay_max": torch.where(chosen, decay, 0).amax(),
        "overdamped": torch.einsum("bn,bnh->h", weight, (decay > OVERDAMPED * potential.abs()).to(decay.dtype)).mean(),
        "lyapunov": lyapunov.mean(),
        "memory_length_max": 1 / lyapunov.amin().clamp(min=1e-6),
    }
