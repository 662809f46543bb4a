"""The causal resolvent applied to values in float64: site by site, and by dense solves with the leading blocks."""

import torch

from ..resolvent_arguments import check_resolvent
from .causal_resolvent_diagonal import carried_matrix, in_float64, left_green


def causal_resolvent_apply(diagonal, lower, upper, energy, values, *, initial=None, group=None):
    """y and theta by their recursions; arguments, results and errors as `muse_kernels.causal_resolvent_apply`.

    Gradients are autograd's through the recursions. Source: mathematics §1.
    """
    problem = check_resolvent(
        "causal_resolvent_apply", diagonal, lower, upper, energy, values=values, initial=initial, group=group
    )
    d, l, p = in_float64(problem)
    theta = left_green(d, p, problem.theta)
    x = problem.values.to(torch.complex128)
    width = x.shape[-1]
    y = x.new_zeros((*problem.lead, width)) if problem.applied is None else problem.applied.to(x.dtype)
    steps = []
    for i in range(problem.sites):
        y = theta[..., i, None] * (x[..., i, :] - l[..., i, None] * y)
        steps.append(y)
    applied, theta = torch.stack(steps, dim=-2).to(problem.dtype), theta.to(problem.dtype)
    return (applied, theta), (theta[..., -1].clone(), applied[..., -1, :].clone())


def causal_resolvent_apply_dense(diagonal, lower, upper, energy, values, *, initial=None):
    """y_i as the last row of (H_{0..i} - z)^{-1} x_{0..i}, one dense inverse a site: O(N⁴), for tests."""
    problem = check_resolvent(
        "causal_resolvent_apply", diagonal, lower, upper, energy, values=values, initial=initial
    )
    matrix = carried_matrix(problem)
    x = problem.values.to(torch.complex128).expand(*problem.shape, -1)
    if problem.applied is not None:
        carried = problem.lower.to(x.dtype)[..., 0, None] * problem.applied.to(x.dtype)
        x = torch.cat(((x[..., 0, :] - carried)[..., None, :], x[..., 1:, :]), dim=-2)
    theta, y = [], []
    for n in range(1, problem.sites + 1):
        last = torch.linalg.inv(matrix[..., :n, :n])[..., -1:, :]
        theta.append(last[..., 0, -1])
        y.append((last @ x[..., :n, :])[..., 0, :])
    applied, theta = torch.stack(y, dim=-2).to(problem.dtype), torch.stack(theta, dim=-1).to(problem.dtype)
    return (applied, theta), (theta[..., -1].clone(), applied[..., -1, :].clone())
