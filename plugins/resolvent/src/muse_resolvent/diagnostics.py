"""Measures of the resolvent layer.

Letters: B batch rows, N tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

OVERDAMPED = 10.0


def local_exponents(theta: Tensor, hopping: Tensor) -> Tensor:
    """−½ log|p θ²| of each token, from θ (B, N, H) complex and |l| (H,), with p = |l|²: (B, N, H).

    Its mean over tokens is the Lyapunov exponent of the head. Source: mathematics §1.
    """
    # Half the log of the square, since torch's modulus of complex numbers takes twice as long on a CPU.
    return -hopping.log() - 0.5 * (theta.real.square() + theta.imag.square()).log()


@torch.no_grad()
def metrics(
    potential: Tensor, decay: Tensor, theta: Tensor, hopping: Tensor, valid: Tensor | None
) -> dict[str, Tensor]:
    """Over valid tokens: ``decay`` Γ with ``decay_min`` and ``decay_max``; ``overdamped``, the share with Γ > 10 |V|;
    ``lyapunov``, the mean over heads of their exponents, with ``lyapunov_min`` and ``lyapunov_max``;
    ``memory_length_max``, the inverse of the smallest, in tokens.

    V, Γ, θ (B, N, H); ``hopping`` |l| (H,); ``valid`` (B, N). Source: mathematics §1, §2.
    """
    exponents, overdamped = local_exponents(theta, hopping), decay > OVERDAMPED * potential.abs()
    if valid is None:
        (smallest, largest), lyapunov = decay.aminmax(), exponents.mean((0, 1))
        mean, overdamped = decay.mean(), overdamped.to(decay.dtype).mean()
    else:
        weight = _weights(decay, valid)
        chosen = valid[..., None]
        lyapunov, mean, overdamped = (
            torch.einsum("bn,bnh->h", weight, x.to(decay.dtype)) for x in (exponents, decay, overdamped)
        )
        mean, overdamped = mean.mean(), overdamped.mean()
        smallest, largest = torch.where(chosen, decay, torch.inf).amin(), torch.where(chosen, decay, 0).amax()
    return {
        "decay": mean,
        "decay_min": smallest,
        "decay_max": largest,
        "overdamped": overdamped,
        "lyapunov": lyapunov.mean(),
        "lyapunov_min": lyapunov.amin(),
        "lyapunov_max": lyapunov.amax(),
        "memory_length_max": 1 / lyapunov.amin().clamp(min=1e-6),
    }


@torch.no_grad()
def strengths(terms: Mapping[str, tuple[Tensor, Tensor]], valid: Tensor | None) -> dict[str, Tensor]:
    """``<potential>/strength``: root mean square of each potential's V (B, N, H) over heads and valid tokens."""
    found = {}
    for name, (potential, _) in terms.items():
        power = potential.square().mean(-1)
        mean = power.mean() if valid is None else (power * _weights(power, valid)).sum()
        found[f"{name}/strength"] = mean.sqrt()
    return found


def _weights(like: Tensor, valid: Tensor) -> Tensor:
    """(B, N): equal over valid tokens, adding up to one."""
    return (valid / valid.sum().clamp(min=1)).to(like.dtype)
