"""The signature and the check that the backends of an operation have in common, around what each computes.

The results have the name and the docstring of what they are made of. `arguments.checked` does this for fast weights.
"""

from collections.abc import Callable

from torch import Tensor

from .arguments import Tridiagonal, check_resolvent
from .convolution_arguments import check_convolution, check_short_convolution


def diagonal_of(solve: Callable[[Tridiagonal], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A backend's `causal_resolvent_diagonal`: `solve` gives theta (*lead, N)."""

    def causal_resolvent_diagonal(
        diagonal, lower, upper, energy, *, initial=None, group=None
    ) -> tuple[Tensor, Tensor]:
        theta = solve(
            check_resolvent("causal_resolvent_diagonal", diagonal, lower, upper, energy, initial=initial, group=group)
        )
        return theta, theta[..., -1].clone()

    return _called(causal_resolvent_diagonal, solve)


def apply_of(solve: Callable[[Tridiagonal], tuple[Tensor, Tensor]]) -> Callable:
    """A backend's `causal_resolvent_apply`: `solve` gives y (*lead, N, M) and theta (*lead, N)."""

    def causal_resolvent_apply(diagonal, lower, upper, energy, values, *, initial=None, group=None):
        y, theta = solve(
            check_resolvent(
                "causal_resolvent_apply", diagonal, lower, upper, energy, values=values, initial=initial, group=group
            )
        )
        return (y, theta), (theta[..., -1].clone(), y[..., -1, :].clone())

    return _called(causal_resolvent_apply, solve)


def convolution_of(compute: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """A backend's `short_convolution`: `compute` of x, taps, initial, resets, heads and key_width gives queries, keys
    and values, (B, N, H, K) twice and (B, N, H, M)."""

    def short_convolution(
        x: Tensor,
        taps: Tensor,
        heads: int,
        key_width: int,
        *,
        initial: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        check_short_convolution(x, taps, heads, key_width, initial, resets)
        query, key, value = compute(x, taps, initial, resets, heads, key_width)
        return query, key, value

    return _called(short_convolution, compute)


def causal_of(compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A backend's `causal_convolution`: `compute` of x, taps, initial and resets gives y (B, N, C)."""

    def causal_convolution(
        x: Tensor, taps: Tensor, *, initial: Tensor | None = None, resets: Tensor | None = None
    ) -> Tensor:
        check_convolution("causal_convolution", x, taps, initial, resets)
        return compute(x, taps, initial, resets)

    return _called(causal_convolution, compute)


def _called(function: Callable, compute: Callable) -> Callable:
    function.__name__, function.__qualname__ = compute.__name__, compute.__qualname__
    function.__module__, function.__doc__ = compute.__module__, compute.__doc__
    return function
