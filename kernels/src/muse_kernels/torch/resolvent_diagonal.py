"""The two-sided diagonal by plain torch: theta from the left, then one linear recurrence from the right."""

import torch
from torch import Tensor

from ..resolvent_arguments import check_resolvent
from .left_green import left_green_of
from .linear_scan import linear_scan


def resolvent_diagonal(diagonal, lower, upper, energy) -> Tensor:
    """G_i = theta_i + p_{i+1} theta_i^2 G_{i+1}; arguments, results and errors as `muse_kernels.resolvent_diagonal`.

    Cost and memory O(N). Source: mathematics §1.
    """
    problem = check_resolvent("resolvent_diagonal", diagonal, lower, upper, energy)
    theta = left_green_of(problem)
    p = (problem.lower * problem.upper).to(problem.dtype).expand(problem.shape)
    factors = p[..., 1:] * theta[..., :-1].square()
    factors = torch.cat((factors, torch.zeros_like(theta[..., :1])), dim=-1)
    return linear_scan(theta[..., None], factors, reverse=True)[..., 0]
