"""The left Green's function by plain torch."""

from torch import Tensor

from ..resolvent_arguments import check_resolvent
from .left_green import left_green_of


def causal_resolvent_diagonal(diagonal, lower, upper, energy, *, initial=None, group=None) -> tuple[Tensor, Tensor]:
    """theta in lanes; arguments, results and errors as `muse_kernels.causal_resolvent_diagonal`.

    Cost and memory O(N). Source: mathematics §1.
    """
    problem = check_resolvent(
        "causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial, group=group
    )
    theta = left_green_of(problem)
    return theta, theta[..., -1].clone()
