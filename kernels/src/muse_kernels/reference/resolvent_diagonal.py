"""The two-sided diagonal in float64: through the left and right continued fractions, and as a dense inverse."""

import torch
from torch import Tensor

from ..resolvent_arguments import check_resolvent
from .causal_resolvent_diagonal import in_float64, left_green, shifted_matrix


def resolvent_diagonal(diagonal, lower, upper, energy) -> Tensor:
    """G_i = 1 / (1/theta_i + 1/phi_i - d_i); arguments, results and errors as `muse_kernels.resolvent_diagonal`.

    Gradients are autograd's through the recursions. Source: mathematics §1.
    """
    problem = check_resolvent("resolvent_diagonal", diagonal, lower, upper, energy)
    d, _, p = in_float64(problem)
    theta = left_green(d, p, None)
    # From the right, entry i + 1 couples: phi_i = 1 / (d_i - p_{i+1} phi_{i+1}).
    couplings = torch.cat((p.new_zeros(p[..., :1].shape), p[..., 1:].flip(-1)), dim=-1)
    phi = left_green(d.flip(-1), couplings, None).flip(-1)
    return (1 / (1 / theta + 1 / phi - d)).to(problem.dtype)


def resolvent_diagonal_dense(diagonal, lower, upper, energy) -> Tensor:
    """The same by inverting the dense matrix: O(N³), for tests."""
    problem = check_resolvent("resolvent_diagonal", diagonal, lower, upper, energy)
    return torch.linalg.inv(shifted_matrix(problem)).diagonal(dim1=-2, dim2=-1).to(problem.dtype)
