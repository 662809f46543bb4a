"""Fast weights over few, long rows: a row is cut into pieces that are scanned side by side.

A scan takes the chunks of a row one after the other, a program a row and tile: eight rows leave most of a device idle.
What a piece does to the state is linear, S -> A S + B. So a first scan takes every piece from zero and from the unit
matrix, side by side, to find its B and A, the pieces' starts follow one after the other, and the second scan is the
ordinary one from each of them; backward, dS -> A^T dS + D alike. Two scans instead of one, of a fraction of its length.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from . import launch
from .launch import Prepared, Problem
from .pieces_kernels import carry_states_kernel, transitions_kernel

Carry = Callable[..., tuple[Tensor, Tensor]]
"""`carry`, or what takes its place where a row goes on in other processes."""
PROGRAMS, FEWEST_PIECES, SHORTEST = 256, 8, 16
"""Rows times pieces at most; pieces of a row from which two scans are faster than one; chunks of a piece at least."""


class Pieces(NamedTuple):
    """What the forward pass keeps of a cut: (B P, H, K, M) and (B P, H, K, K), P pieces a row."""

    starts: Tensor
    transitions: Tensor


def pieces_of(rows: int, tokens: int, chunk: int) -> int:
    """Into how many pieces a row is cut, a power of two; 1 where rows are many, short, none, or no multiple of it."""
    pieces, chunks = 1, tokens // chunk
    if rows == 0 or tokens % chunk:
        return 1
    while rows * pieces * 2 <= PROGRAMS and chunks % (pieces * 2) == 0 and chunks >= pieces * 2 * SHORTEST:
        pieces *= 2
    return pieces if pieces >= FEWEST_PIECES else 1


def shapes(query: Tensor, value: Tensor, pieces: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of a `Pieces`; empty ones for rows that stay whole."""
    batch, _, heads, key_width = query.shape
    if pieces == 1:
        return (0,), (0,)
    return (batch * pieces, heads, key_width, value.shape[-1]), (batch * pieces, heads, key_width, key_width)


def cut(p: Problem, pieces: int) -> Problem:
    """The pieces as rows of a problem of their own, without a start."""
    query, key, value, log_decay, rate = (
        x.unflatten(1, (pieces, -1)).flatten(0, 1) for x in (p.query, p.key, p.value, p.log_decay, p.rate)
    )
    resets = None if p.resets is None else p.resets.unflatten(1, (pieces, -1)).flatten(0, 1)
    return p._replace(query=query, key=key, value=value, log_decay=log_decay, rate=rate, resets=resets, initial=None)


def forward(
    p: Problem, pieces: int, carried: Carry | None = None
) -> tuple[Tensor, Tensor, Tensor, Prepared, Pieces]:
    """As `launch.forward`, and what the backward pass needs of the cut; `prepared` is the pieces'."""
    cuts = cut(p, pieces)
    batch, tokens, heads, key_width = p.query.shape
    value_width = p.value.shape[-1]
    prepared = launch.new_prepared(cuts)
    launch.prepare(cuts, prepared)

    ends, output, residual = (new(cuts, value_width) for new in (_states, _outputs, _outputs))
    transitions = _states(cuts, key_width)
    _scan_transitions(cuts, prepared, ends, transitions)

    state = ends.new_zeros(batch, heads, key_width, value_width) if p.initial is None else p.initial
    starts, last = (carried or carry)(transitions, ends, state, pieces, reverse=False)
    launch.scan_forward(cuts._replace(initial=starts), prepared, output, ends, residual)
    final = ends.unflatten(0, (batch, pieces))[:, -1].contiguous() if carried is None else last
    whole = (batch, tokens, heads, value_width)
    residual = residual.view(whole) if p.delta else residual.new_empty(0)
    return output.view(whole), final, residual, prepared, Pieces(starts, transitions)


def backward(
    p: Problem, residual: Tensor, prepared: Prepared, kept: Pieces, grad_output: Tensor, grad_final: Tensor | None,
    pieces: int, carried: Carry | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """As `launch.backward`."""
    cuts = cut(p, pieces)._replace(initial=kept.starts)
    batch, _, heads, key_width = p.query.shape
    stored, given = (x.unflatten(1, (pieces, -1)).flatten(0, 1) for x in (residual, grad_output))
    widths = key_width, p.value.shape[-1]
    grad_ends = p.value.new_empty(cuts.rows, cuts.chunks, *widths)
    grad_value = p.value.new_empty(cuts.value.shape)
    from_zero = _states(cuts, widths[1])
    launch.scan_ends(cuts, prepared, given, None, grad_ends, grad_value, from_zero)
    last = from_zero.new_zeros(batch, heads, *widths) if grad_final is None else grad_final
    ends, grad_initial = (carried or carry)(kept.transitions, from_zero, last, pieces, reverse=True)
    *gradients, _ = launch.backward(cuts, stored, prepared, given, ends)  # the last is the pieces' starts'
    shapes = [x.shape for x in (p.query, p.key, p.value, p.log_decay, p.rate)]
    leaves = [gradient.reshape(shape) for gradient, shape in zip(gradients, shapes, strict=True)]
    return *leaves, grad_initial


def carry(factors: Tensor, terms: Tensor, state: Tensor, pieces: int, *, reverse: bool) -> tuple[Tensor, Tensor]:
    """The state before each piece, (B P, H, K, M), and after the last, (B, H, K, M), of S -> A S + B; with `reverse`
    from the last piece on, of S -> A^T S + B."""
    _, heads, key_width, value_width = state.shape
    before, after = torch.empty_like(terms), torch.empty_like(state)
    columns = 16
    with torch.cuda.device_of(terms):
        carry_states_kernel[len(state) * heads, triton.cdiv(value_width, columns)](
            factors, terms, state, before, after, heads, pieces, K=key_width, M=value_width,
            BK=launch.tile(key_width), BM=columns, REVERSE=reverse, num_warps=8,
        )  # fmt: skip
    return before, after


def _scan_transitions(p: Problem, prepared: Prepared, terms: Tensor, transitions: Tensor) -> None:
    """Launch `transitions_kernel`."""
    sizes = p.sizes(p.tuning.transitions)
    columns = sizes["BM"]
    sizes["FULL"] = sizes["FULL"] and sizes["K"] % columns == 0
    transitions_kernel[p.grid(triton.cdiv(sizes["M"], columns) + triton.cdiv(sizes["K"], columns))](
        *(p.key, p.value, prepared.inverse, prepared.factors, prepared.kept, terms, transitions, *p.extent),
        *launch.steps(p.key, p.value),
        **sizes,
    )


def _states(p: Problem, width: int) -> Tensor:
    return p.rate.new_empty(p.query.shape[0], p.query.shape[2], p.query.shape[3], width)


def _outputs(p: Problem, width: int) -> Tensor:
    return p.value.new_empty(*p.query.shape[:3], width)
