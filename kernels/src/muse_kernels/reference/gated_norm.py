"""The gated normalisation in float64, as its definition."""

import torch
from torch import Tensor

from ..arguments import check_gated_norm


def gated_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, *, epsilon: float = 1e-6, behind: Tensor | None = None
) -> Tensor:
    """x / sqrt(mean x^2 + epsilon) * weight * gate * sigmoid(gate); as `muse_kernels.gated_norm`, in float64."""
    check_gated_norm(x, weight, gate, behind)
    if behind is not None:
        return torch.cat((gated_norm(x, weight, gate, epsilon=epsilon), behind.double()), dim=-1)
    x = torch.cat((x.real, x.imag), dim=-1).double() if x.is_complex() else x.double()
    if weight is not None:
        x = x / (x.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.double()
    if gate is None:
        return x
    opened = gate.double() * gate.double().sigmoid()
    return x * (opened if gate.shape == x.shape else torch.cat((opened, opened), dim=-1))
