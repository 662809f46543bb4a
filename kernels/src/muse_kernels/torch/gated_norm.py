"""The gated normalisation by plain torch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..arguments import check_gated_norm, in_double


def gated_norm(
    x: Tensor, weight: Tensor | None, gate: Tensor | None, *, epsilon: float = 1e-6, behind: Tensor | None = None
) -> Tensor:
    """One pass an operation; arguments, results and errors as `muse_kernels.gated_norm`."""
    dtype = check_gated_norm(x, weight, gate, behind)
    if behind is not None:
        return torch.cat((gated_norm(x, weight, gate, epsilon=epsilon), behind.to(dtype)), dim=-1)
    both = x.is_complex()
    if both:
        x = torch.cat((x.real, x.imag), dim=-1)
    computed = torch.float64 if in_double(x, weight, gate) else torch.float32
    x = x.to(computed)
    if weight is not None:
        x = F.rms_norm(x, x.shape[-1:], weight.to(computed), epsilon)
    if gate is None:
        return x.to(dtype)
    opened = F.silu(gate.to(computed))
    if both:
        return (x.unflatten(-1, (2, -1)) * opened.unsqueeze(-2)).flatten(-2).to(dtype)
    return (x * opened).to(dtype)
