"""The continued fraction of a tridiagonal Hamiltonian.

Letters: N tokens, ``lead`` any leading dimensions, broadcast over all arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal_resolvent_diagonal(
    diagonal: Tensor,
    lower: Tensor | complex,
    upper: Tensor | complex,
    energy: Tensor | complex,
    *,
    initial: Tensor | None = None,
    group: None = None,
) -> tuple[Tensor, Tensor]:
    """θ_i = 1 / (a_i − z − l_i u_i θ_{i−1}), (*lead, N) complex, and its last entry (*lead,). Gradients are autograd's.

    ``diagonal`` a, ``lower`` l and ``upper`` u broadcast to (*lead, N), ``energy`` z to (*lead, 1); ``initial`` is
    θ_{−1}, zero when None.
    """
    assert group is None, "refused by the backend"
    shifted = diagonal - energy
    coupling = (lower * upper) * torch.ones_like(shifted)
    theta = torch.zeros_like(shifted[..., 0]) if initial is None else initial
    steps = []
    for token in range(shifted.shape[-1]):
        theta = 1 / (shifted[..., token] - coupling[..., token] * theta)
        steps.append(theta)
    return torch.stack(steps, dim=-1), theta
