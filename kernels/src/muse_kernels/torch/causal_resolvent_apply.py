"""The causal resolvent applied to values by plain torch: theta, then one linear recurrence."""

from ..resolvent_arguments import check_resolvent
from .left_green import left_green_of
from .linear_scan import linear_scan


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
