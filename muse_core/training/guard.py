"""Fused checks of a step: gradients finite or not, their global norm in float64, the clip; weights and moments."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def gradient_numbers(parameters: Iterable[nn.Parameter]) -> dict[str, Tensor]:
    """``gradient_norm``: global 2-norm accumulated in float64, complex by modulus; ``gradient_nonfinite``: how many
    tensors hold a NaN or an infinity. Device scalars, no synchronisation.

    A finite gradient of 1e25 squares to infinity in fp32 and would be mistaken for damage; scaled per tensor by its
    largest magnitude it is not.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients if g.numel()]
    if not real:
        zero = torch.zeros((), dtype=torch.float64)
        return {"gradient_norm": zero, "gradient_nonfinite": zero}
    largest = torch._foreach_norm(real, float("inf"))
    nonfinite = torch.stack([~torch.isfinite(value.double()) for value in largest]).sum()
    scales = [value.float().clamp_min(1e-30) for value in largest]
    scaled = torch._foreach_div(real, scales)
    norms = torch._foreach_norm(scaled, 2)
    squares = torch.stack([(n.double() * s.double()).square() for n, s in zip(norms, scales)])
    return {"gradient_norm": squares.sum().sqrt(), "gradient_nonfinite": nonfinite}


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
