"""The resolvent operations in float64: their recursions site by site, and by dense inverses of the leading blocks."""

import torch
from torch import Tensor

from ..arguments import Tridiagonal, check_resolvent
from ..signatures import apply_of, diagonal_of


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


@diagonal_of
def causal_resolvent_diagonal(problem: Tridiagonal) -> Tensor:
    """theta by its recursion; arguments, results and errors as `muse_kernels.causal_resolvent_diagonal`.

    Gradients are autograd's through the recursion. Source: mathematics §1.
    """
    d, _, p = in_float64(problem)
    return left_green(d, p, problem.theta).to(problem.dtype)


def causal_resolvent_diagonal_dense(diagonal, lower, upper, energy, *, initial=None) -> tuple[Tensor, Tensor]:
    """theta_i = [(H_{0..i} - z)^{-1}]_ii, one dense inverse a site: O(N⁴), for tests."""
    problem = check_resolvent("causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial)
    matrix = carried_matrix(problem)
    theta = [torch.linalg.inv(matrix[..., :n, :n])[..., -1, -1] for n in range(1, problem.sites + 1)]
    theta = torch.stack(theta, dim=-1).to(problem.dtype)
    return theta, theta[..., -1].clone()


@apply_of
def causal_resolvent_apply(problem: Tridiagonal) -> tuple[Tensor, Tensor]:
    """y and theta by their recursions; arguments, results and errors as `muse_kernels.causal_resolvent_apply`.

    Gradients are autograd's through the recursions. Source: mathematics §1.
    """
    d, l, p = in_float64(problem)
    theta = left_green(d, p, problem.theta)
    x = problem.values.to(torch.complex128)
    width = x.shape[-1]
    y = x.new_zeros((*problem.lead, width)) if problem.applied is None else problem.applied.to(x.dtype)
    steps = []
    for i in range(problem.sites):
        y = theta[..., i, None] * (x[..., i, :] - l[..., i, None] * y)
        steps.append(y)
    return torch.stack(steps, dim=-2).to(problem.dtype), theta.to(problem.dtype)


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
