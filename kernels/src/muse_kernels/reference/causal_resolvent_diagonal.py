"""The left Green's function in float64: the continued fraction, and dense inverses of the leading blocks."""

import torch
from torch import Tensor

from ..resolvent_arguments import Tridiagonal, check_resolvent


def causal_resolvent_diagonal(diagonal, lower, upper, energy, *, initial=None, group=None) -> tuple[Tensor, Tensor]:
    """theta by its recursion; arguments, results and errors as `muse_kernels.causal_resolvent_diagonal`.

    Gradients are autograd's through the recursion. Source: mathematics §1.
    """
    problem = check_resolvent(
        "causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial, group=group
    )
    d, _, p = in_float64(problem)
    theta = left_green(d, p, problem.theta).to(problem.dtype)
    return theta, theta[..., -1].clone()


def causal_resolvent_diagonal_dense(diagonal, lower, upper, energy, *, initial=None) -> tuple[Tensor, Tensor]:
    """theta_i = [(H_{0..i} - z)^{-1}]_ii, one dense inverse a site: O(N⁴), for tests."""
    problem = check_resolvent("causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial)
    matrix = carried_matrix(problem)
    theta = [torch.linalg.inv(matrix[..., :n, :n])[..., -1, -1] for n in range(1, problem.sites + 1)]
    theta = torch.stack(theta, dim=-1).to(problem.dtype)
    return theta, theta[..., -1].clone()


def shifted_matrix(problem: Tridiagonal) -> Tensor:
    """H - z without a carried state, (*lead, N, N) complex128."""
    d = (problem.diagonal - problem.energy).to(torch.complex128).expand(problem.shape)
    lower, upper = (x.to(torch.complex128).expand(problem.shape) for x in (problem.lower, problem.upper))
    return (
        torch.diag_embed(d) + torch.diag_embed(lower[..., 1:], offset=-1) + torch.diag_embed(upper[..., 1:], offset=1)
    )


def carried_matrix(problem: Tridiagonal) -> Tensor:
    """H - z with the carried theta folded into entry (0, 0) as -p_0 theta_{-1}: (*lead, N, N) complex128."""
    matrix = shifted_matrix(problem)
    if problem.theta is None:
        return matrix
    first = (problem.lower * problem.upper)[..., 0] * problem.theta
    corner = torch.zeros_like(matrix[..., 0])
    corner = torch.cat((first[..., None].to(corner), corner[..., 1:]), dim=-1)
    return matrix - torch.diag_embed(corner)


def in_float64(problem: Tridiagonal) -> tuple[Tensor, Tensor, Tensor]:
    """d = a - z, l and p = l u, each (*lead, N) complex128."""
    a, l, u, z = (x.to(torch.complex128) for x in (problem.diagonal, problem.lower, problem.upper, problem.energy))
    return (a - z).expand(problem.shape), l.expand(problem.shape), (l * u).expand(problem.shape)


def left_green(d: Tensor, p: Tensor, initial: Tensor | None) -> Tensor:
    """theta_i = 1 / (d_i - p_i theta_{i-1}), site by site."""
    theta = d.new_zeros(d.shape[:-1]) if initial is None else initial.to(d.dtype)
    steps = []
    for i in range(d.shape[-1]):
        theta = 1 / (d[..., i] - p[..., i] * theta)
        steps.append(theta)
    return torch.stack(steps, dim=-1)
