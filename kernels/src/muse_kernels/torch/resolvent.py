"""The resolvent operations by plain torch: theta from the left, then at most one linear recurrence."""

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


def causal_resolvent_diagonal(diagonal, lower, upper, energy, *, initial=None, group=None) -> tuple[Tensor, Tensor]:
    """theta in chunks side by side; arguments, results and errors as `muse_kernels.causal_resolvent_diagonal`.

    Cost and memory O(N). Source: mathematics §1.
    """
    problem = check_resolvent(
        "causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial, group=group
    )
    theta = left_green_of(problem)
    return theta, theta[..., -1].clone()


def causal_resolvent_apply(diagonal, lower, upper, energy, values, *, initial=None, group=None):
    """y_i = theta_i (x_i - l_i y_{i-1}); arguments, results and errors as `muse_kernels.causal_resolvent_apply`.

    Cost and memory O(N M). Source: mathematics §1.
    """
    problem = check_resolvent(
        "causal_resolvent_apply", diagonal, lower, upper, energy, values=values, initial=initial, group=group
    )
    theta = left_green_of(problem)
    y = linear_scan(theta[..., None] * problem.values, -theta * problem.lower, problem.applied)
    return (y, theta), (theta[..., -1].clone(), y[..., -1, :].clone())
