"""Operations along tokens that are divided among processes: what each computes of its own tokens, what all gather, and
how what came before reaches its own.

Every function takes the kernel that serves one process, and ``gather``, which gives the values of all processes in the
order of the tokens, (C, …), with gradients. Each process holds as many tokens; ``initial`` belongs to the first token
of all and the final state to the last, and both are the same on all. Results and gradients are those of the kernel over
all tokens, exactly but for rounding. Letters: C processes, N tokens of one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.fast_weights import Writes, over_parts
from muse_core.model.convolution import carried

Gather = Callable[[Tensor], Tensor]


def causal_resolvent_diagonal(
    kernel: Callable[..., Any], gather: Gather, rank: int, diagonal: Tensor, lower: Any, upper: Any, energy: Any, *,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """θ and its last entry; see ``muse_kernels.causal_resolvent_diagonal``."""

    def theta_of(*lattice: Any, initial: Tensor | None = None) -> Tensor:
        theta: Tensor = kernel(*lattice, initial=initial)[0]
        return theta

    before, last = _theta_before(theta_of, gather, rank, (diagonal, lower, upper, energy), initial)
    return theta_of(diagonal, lower, upper, energy, initial=before), last


def causal_resolvent_apply(
    kernel: Callable[..., Any], gather: Gather, rank: int, diagonal: Tensor, lower: Any, upper: Any, energy: Any,
    values: Tensor, *, initial: tuple[Tensor, Tensor] | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(y, θ) and their last entries; see ``muse_kernels.causal_resolvent_apply``.

    With y_{−1} before the tokens of a process, y_i is what it has without, plus F_i y_{−1} with F_i = Π_{j≤i} −θ_j l_j:
    the solution without values from y_{−1} = 1, which is one column beside the M of the values.
    """

    def solved(*lattice: Any, values: Tensor, initial: Any = None) -> tuple[Tensor, Tensor]:
        y, theta = kernel(*lattice, values, initial=initial)[0]
        return y, theta

    nothing = values.new_zeros(*values.shape[:-1], 1)

    def theta_of(*lattice: Any, initial: Tensor | None = None) -> Tensor:
        start = None if initial is None else (initial, initial.new_zeros(*initial.shape, 1))
        return solved(*lattice, values=nothing, initial=start)[1]

    lattice = (diagonal, lower, upper, energy)
    theta_start, y_start = (None, None) if initial is None else initial
    theta_before, theta_last = _theta_before(theta_of, gather, rank, lattice, theta_start)
    zero = theta_before.new_zeros(*theta_before.shape, values.shape[-1])
    y, theta = solved(*lattice, values=values, initial=(theta_before, zero))
    factor = solved(*lattice, values=nothing, initial=(theta_before, torch.ones_like(zero[..., :1])))[0]
    starts = [torch.zeros_like(y[..., -1, :]) if y_start is None else y_start.to(y.dtype)]
    for end in _gathered(gather, torch.cat((y[..., -1, :], factor[..., -1, :]), dim=-1)):
        starts.append(end[..., :-1] + end[..., -1:] * starts[-1])
    return (torch.addcmul(y, factor, starts[rank][..., None, :]), theta), (theta_last, starts[-1])


def _theta_before(
    theta_of: Callable[..., Tensor], gather: Gather, rank: int, lattice: tuple[Any, ...], initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """θ before the first token of this process and after the last of all, (*lead,).

    A carried θ_{−1} is a self-energy p_0 θ_{−1} at site 0 of the block of a process, so that by Sherman and Morrison
    θ_N = θ⁰_N + Q θ_{−1} / (1 − p_0 θ_{−1} G⁰_00) with Q = Π p_i (θ⁰_i)²: a Möbius map, told by four numbers. θ⁰ and
    G⁰ belong to θ_{−1} = 0, and G⁰_00 is the last θ⁰ of the block read backwards.
    """
    diagonal, lower, upper, energy = lattice
    theta = theta_of(diagonal, lower, upper, energy)
    lower, upper = _along(lower, theta), _along(upper, theta)
    coupling = lower * upper
    backwards = (torch.cat((torch.zeros_like(x[..., :1]), x[..., 1:].flip(-1)), dim=-1) for x in (lower, upper))
    corner = theta_of(diagonal.flip(-1), *backwards, energy)[..., -1]
    product = _Product.apply(coupling * theta.square())
    first = coupling[..., 0].to(theta.dtype)
    maps = _gathered(gather, torch.stack((theta[..., -1], product, first, corner), dim=-1))
    before = [torch.zeros_like(theta[..., -1]) if initial is None else initial.to(theta.dtype).expand(theta.shape[:-1])]
    for one in maps:
        alone, product, first, corner = one.unbind(-1)
        before.append(alone + product * before[-1] / (1 - first * before[-1] * corner))
    return before[rank], before[-1]


class _Product(torch.autograd.Function):
    """Π x over the last axis. torch's own gradient waits for the device, to look whether a factor is zero, and where
    one is, as at the start of a document, multiplies up the whole row once more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.prod(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        zero = x == 0
        zeros = zero.sum(-1, keepdim=True)
        rest = x.masked_fill(zero, 1.0)
        others = rest.prod(-1, keepdim=True)
        alone = torch.where(zero & (zeros == 1), others, 0.0)
        return gradient[..., None] * torch.where(zeros == 0, others / rest, alone).conj()


def _along(value: Any, like: Tensor) -> Tensor:
    """A coupling as (*lead, N)."""
    return torch.as_tensor(value, device=like.device).expand(like.shape)


def _gathered(gather: Gather, value: Tensor) -> Tensor:
    """``gather`` of complex numbers."""
    return torch.view_as_complex(gather(torch.view_as_real(value).contiguous()))


def fast_weights(
    kernel: Callable[..., Any], gather: Gather, rank: int, *writes: Tensor, rule: str, initial: Tensor | None = None,
    resets: Tensor | None = None, read: str = "after", **options: Any,
) -> tuple[Tensor, Tensor]:
    """Output and final weights; see ``muse_kernels.fast_weights``."""

    def own(*writes: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        output, final = kernel(*writes, **options, **more)
        return output, final

    return over_parts(own, gather, rank, Writes(*writes), rule=rule, initial=initial, resets=resets, read=read)


def convolution(
    kernel: Callable[..., Any], gather: Gather, rank: int, x: Tensor, taps: Tensor, *sizes: int,
    initial: Tensor | None = None, resets: Tensor | None = None,
) -> Any:
    """What ``muse_kernels.short_convolution`` or ``causal_convolution`` returns. A process gathers the last inputs of
    the one before it. Raises RecipeError where a process has fewer tokens than the convolution looks back."""
    memory = len(taps) - 1
    if x.shape[1] < memory:
        raise RecipeError(
            f"parallel.context: a convolution of {len(taps)} tokens looks back further than the {x.shape[1]} of a "
            "process - take longer rows (train.sequence_length), or fewer processes"
        )
    nothing = x.new_zeros(x.shape[0], memory, x.shape[2])
    last = gather(carried(nothing, x, Tokens(x[..., 0], 0, resets)).contiguous())
    return kernel(x, taps, *sizes, initial=last[rank - 1] if rank else initial, resets=resets)


def _first_tied(found: Any, tied: Callable[[Tensor], Tensor]) -> Any:
    """Nested tuples of tensors with the first of them tied."""
    return tied(found) if isinstance(found, Tensor) else (_first_tied(found[0], tied), *found[1:])


def unchanged(kernel: Callable[..., Any], gather: Gather, rank: int, *given: Any, **options: Any) -> Any:
    """An operation on every token by itself, or on no tokens."""
    return kernel(*given, **options)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "causal_resolvent_diagonal": causal_resolvent_diagonal,
    "causal_resolvent_apply": causal_resolvent_apply,
    "fast_weights": fast_weights,
    "causal_convolution": convolution,
    "short_convolution": convolution,
    "gated_norm": unchanged,
    "newton_schulz": unchanged,
}


def across(kernel: Callable[..., Any], operation: str, sequence: Any) -> Callable[..., Any]:
    """The kernel, which computes over the tokens of all processes while ``sequence`` (a
    ``muse_core.parallel.sequence.Sequence``) is divided, and over its own otherwise. Raises RecipeError for an
    operation that has no such form.

    A backend's function may have one of its own, which computes less, as its attribute ``divided``: (collect, rank, the
    function's arguments), where ``collect`` gives the values of all without gradients. It has the function's result,
    or None where it does not serve.
    """
    if operation not in OPERATIONS:
        raise RecipeError(f"parallel.context: {operation} has no form for tokens that are divided among processes")
    form = OPERATIONS[operation]
    function, fixed = getattr(kernel, "func", kernel), getattr(kernel, "keywords", {})
    own = getattr(function, "divided", None)

    def computed(*given: Any, **options: Any) -> Any:
        if not sequence.divided:
            return kernel(*given, **options)
        if own is not None:
            found = own(sequence.collect, sequence.rank, *given, **fixed, **options)
            if found is not None:
                return found
        found = form(kernel, sequence.gather, sequence.rank, *given, **options)
        return _first_tied(found, sequence.tied)

    return computed
