"""The resolvent operations: validated once, served by the backend asked for.

H is tridiagonal with diagonal a_i, lower entry l_i at (i, i-1) and upper entry u_i at (i-1, i): entry i couples
i-1 to i, so all have N entries and l_0, u_0 act only on a carried state. Zero couplings at i start a document.
"""

import torch
from torch import Tensor

from .dispatch import implementation, select_backend
from .refusals import require_one_process
from .request import KernelRequest


def resolvent_diagonal(diagonal, lower, upper, energy, *, backend: str = "auto") -> Tensor:
    """The whole diagonal G_i = [(H - z)^{-1}]_ii, (*lead, N) complex. Two-sided, so not causal.

    Args:
        diagonal: a, (..., N), real or complex.
        lower, upper: l and u, broadcastable to (..., N), or scalars; entry 0 has no effect.
        energy: z, complex, broadcastable to (..., 1), or a scalar.
        backend: "auto", or triton, native, torch, reference; `muse_kernels.select_backend` says what "auto" takes.

    Any strides and leading dimensions, which broadcast; bfloat16 is computed in float32. ValueError names the argument
    and the shapes that do not fit. Source: mathematics §1.
    """
    function = _bind("resolvent_diagonal", backend, None, diagonal, lower, upper, energy)
    return function(diagonal, lower, upper, energy)


def causal_resolvent_diagonal(
    diagonal, lower, upper, energy, *, initial=None, group=None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The left Green's function theta_i = 1 / (a_i - z - l_i u_i theta_{i-1}), (*lead, N) complex, and its last entry.

    Args:
        diagonal, lower, upper, energy, backend: as `resolvent_diagonal`.
        initial: theta_{-1}, (*lead,), the `final` of an earlier call; None is zero.
        group: NotImplementedError unless None. Tokens on several processes are computed around the operation, from its
            results from zero and from an `initial` that the processes before give.

    Returns (theta, final) with final = theta_{N-1}, (*lead,). Source: mathematics §1.
    """
    function = _bind("causal_resolvent_diagonal", backend, group, diagonal, lower, upper, energy, initial)
    return function(diagonal, lower, upper, energy, initial=initial, group=group)


def causal_resolvent_apply(
    diagonal, lower, upper, energy, values, *, initial=None, group=None, backend: str = "auto"
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The causal resolvent applied to values: y_i = theta_i (x_i - l_i y_{i-1}), beside theta itself.

    Row i of y is the last row of (H_{0..i} - z)^{-1} times x_{0..i}.

    Args:
        diagonal, lower, upper, energy, group, backend: as `causal_resolvent_diagonal`.
        values: x, (..., N, M), real or complex.
        initial: (theta_{-1}, y_{-1}) of shapes (*lead,) and (*lead, M), the `final` of an earlier call; None is zero.

    Returns ((y, theta), final) with y (*lead, N, M), theta (*lead, N) and final = (theta_{N-1}, y_{N-1}), all complex.
    Source: mathematics §1.
    """
    state = initial if isinstance(initial, (tuple, list)) else ()
    function = _bind("causal_resolvent_apply", backend, group, diagonal, lower, upper, energy, values, *state)
    return function(diagonal, lower, upper, energy, values, initial=initial, group=group)


def _bind(operation: str, backend: str, group, diagonal, *others):
    if not isinstance(diagonal, Tensor):
        raise ValueError(f"{operation}: diagonal must be a tensor, got {type(diagonal).__name__}")
    tensors = [x for x in (diagonal, *others) if isinstance(x, Tensor)]
    double = any(x.dtype in (torch.float64, torch.complex128) for x in tensors if x.ndim or x is diagonal)
    require_one_process(operation, group)
    needs = frozenset({"gradient"}) if any(x.requires_grad for x in tensors) else frozenset()
    request = KernelRequest(operation, diagonal.device.type, "float64" if double else "float32", needs=needs)
    return implementation(operation, select_backend(request, backend).backend)
