"""The left Green's function by Triton kernels."""

from torch import Tensor

from ..resolvent_arguments import check_resolvent
from .left_green import left_green_rows
from .rows import rows_of
from .served import check_served
from .tiles import Tile


def causal_resolvent_diagonal(
    diagonal, lower, upper, energy, *, initial=None, group=None, tile: Tile | None = None
) -> tuple[Tensor, Tensor]:
    """theta in one pass over memory, two for long rows; as `muse_kernels.causal_resolvent_diagonal`, in float32.

    `tile` overrides the choice of lanes and warps, for tests and benchmarks. Source: mathematics §1.
    """
    problem = check_resolvent("causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial, group=group)
    check_served(problem)
    theta = left_green_rows(rows_of(problem), tile).reshape(problem.shape)
    return theta, theta[..., -1].clone()
