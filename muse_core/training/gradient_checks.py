"""Fused checks of a step: gradients finite or not, their global norm in float64, the clip; weights and moments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def norms(gradients: Sequence[Tensor]) -> Tensor:
    """(len(gradients),) float64: the 2-norm of each, complex by modulus; not finite exactly where the gradient holds a
    NaN or an infinity. One pass over the gradients, no synchronisation.

    A finite fp32 gradient of 1e25 squares to infinity in fp32 and would be mistaken for damage; in float64 no square of
    a lower precision overflows, and gradients of float64 are scaled by their largest magnitude.
    """
    real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    if not any(g.dtype == torch.float64 for g in real):
        return torch.stack(torch._foreach_norm(real, 2, dtype=torch.float64)) if real else torch.zeros(0).double()
    found = []
    for g in real:
        scale = g.abs().amax().double() if g.numel() else g.new_zeros((), dtype=torch.float64)
        scale = torch.where(scale > 0, scale, 1.0)
        found.append((g.double() / scale).norm() * scale)
    return torch.stack(found)


def gradient_numbers(norms: Tensor) -> dict[str, Tensor]:
    """``gradient_norm``: global 2-norm; ``gradient_nonfinite``: how many tensors are damaged. Device scalars.

    ``norms`` (P,) float64, as ``norms`` gives them."""
    return {"gradient_norm": torch.linalg.vector_norm(norms), "gradient_nonfinite": (~norms.isfinite()).sum()}


@torch.no_grad()
def state_numbers(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """``state_nonfinite``: how many of these weights and moments hold a NaN or an infinity, before they meet the
    optimiser: a NaN in a moment would be in the weights after it. A device scalar, no synchronisation.

    By the 2-norm in their own precision, a tenth of the time of the largest magnitude on a CPU. In fp32 a magnitude
    above 1e19 counts as damage too; gradients that reach the moments are clipped, so that none is near.
    """
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors if t.numel()]
    if not real:
        return {"state_nonfinite": torch.zeros((), dtype=torch.float64)}
    norms = torch._foreach_norm(real, 2)
    return {"state_nonfinite": (~torch.isfinite(torch.stack([norm.double() for norm in norms]))).sum()}


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], norm: float, limit: float) -> None:
    """Scale all gradients so that the global norm, already read as ``norm``, is at most ``limit``; direction kept."""
    if norm > limit:
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)
