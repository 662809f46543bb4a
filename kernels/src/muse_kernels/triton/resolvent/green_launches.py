"""Launches of the tridiagonal kernels: one program a chunk, and the carries between chunks. No autograd."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..memory import floats
from .carry_kernels import linear_carry_kernel, moebius_carry_kernel
from .green_backward_kernels import green_backward_kernel, left_green_backward_kernel
from .green_kernels import full_green_kernel, left_green_kernel
from .rows import Operands, Rows, operands
from .tiles import CHAIN_BACKWARD, CHAIN_ROWS, LONGEST, Tile, left_backward_tile


def left_green_forward(
    rows: Rows, tile: Tile, full: bool, carries: Callable[[Tensor, Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """theta (R, N), and with `full` also G (R, N), otherwise empty. `carries`: in place of `moebius_carries`, of rows
    that go on in other processes."""
    given = operands(*rows[:3])
    theta = rows.energy.new_empty((given.rows, given.sites))
    green = torch.empty_like(theta) if full else theta.new_empty(0)
    if given.rows == 0:
        return theta, green
    chunks = given.chunks(tile)
    grid = (given.rows, chunks)
    energy, start = floats(rows.energy.contiguous()), rows.theta.contiguous()
    arguments = (*given.diagonal, *given.hopping, energy)
    shared = dict(given.flags, MASKED=given.masked(tile), **tile.options)
    sizes = (given.heads, given.sites, chunks)
    with torch.cuda.device_of(theta):
        fused = full and chunks == 1
        if chunks > 1 or carries is not None:
            summary = energy.new_empty((given.rows, chunks, 8))
            unused = summary
            left_green_kernel[grid](
                *arguments, unused, unused, unused, summary, *sizes, REDUCE=True, GREEN=False, **shared
            )
            start = (carries or moebius_carries)(summary, start)
        start = floats(start)
        left_green_kernel[grid](
            *arguments, start, floats(theta), floats(green) if fused else start, start, *sizes,
            REDUCE=False, GREEN=fused, **shared,
        )  # fmt: skip
        if full and not fused:
            full_green_by_chunks(given, theta, green, tile)
    return theta, green


def full_green_by_chunks(given: Operands, theta: Tensor, green: Tensor, tile: Tile) -> None:
    """Fill G (R, N) of rows of several chunks from their theta."""
    chunks = given.chunks(tile)
    summary = floats(theta).new_empty((given.rows, chunks, 4))
    shared = dict(given.hopping_flags, MASKED=given.masked(tile), **tile.options)
    sizes = (given.heads, given.sites, chunks)
    full_green_kernel[(given.rows, chunks)](
        *given.hopping, floats(theta), summary, summary, summary, *sizes, REDUCE=True, **shared
    )
    zero = theta.new_zeros((given.rows, 1))
    start = linear_carries(summary[..., :2], summary[..., 2:], zero, reverse=True)
    full_green_kernel[(given.rows, chunks)](
        *given.hopping, floats(theta), floats(start), floats(green), summary, *sizes, REDUCE=False, **shared
    )


def left_green_backward(
    rows: Rows, theta: Tensor, gradient: Tensor, applied: Tensor | None, before: Tensor | None, hopping: bool,
    tile: Tile | None = None, chain: bool | None = None, carries: Callable[..., Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of a, l, u, z and theta_{-1}, shaped as the operands; those of l and u are empty without `hopping`.

    `applied` (R, N) and `before`, (R, N) or (R,) where l is one number a row, are what values add, see the kernel.
    `tile` overrides the choice of lanes and warps, `chain` whether a row's chunks wait for each other; `carries`: in
    place of `linear_carries`, of rows that go on in other processes.
    """
    given = operands(*rows[:3])
    if chain is None:
        chain = carries is None and tile is None and given.sites > LONGEST and given.rows >= CHAIN_ROWS
    tile = tile or (CHAIN_BACKWARD if chain else left_backward_tile(given.sites))
    chunks = given.chunks(tile)
    whole = chunks == 1 and carries is None
    sums = Sums(rows, given, hopping, chunks, whole)
    initial_gradient = torch.empty_like(rows.theta, memory_format=torch.contiguous_format)
    if given.rows == 0:
        return *sums.results(), initial_gradient
    gradient, initial = floats(gradient.contiguous()), floats(rows.theta.contiguous())
    add = applied is not None
    extra = [gradient if x is None else floats(x.contiguous()) for x in (applied, before)]
    shared = dict(given.flags, APPLIED=add, HOPPING=hopping, MASKED=given.masked(tile), **tile.options)
    start = initial

    def launch(reduce: bool, start: Tensor, summary: Tensor) -> None:
        left_green_backward_kernel[(given.rows * chunks,) if chain else (given.rows, chunks)](
            *given.hopping, floats(theta), initial, gradient, *extra, start, summary, *sums.pointers(),
            floats(initial_gradient), given.heads, given.rows, given.sites, chunks,
            REDUCE=reduce, WHOLE=whole, CHAIN=chain, **shared,
        )  # fmt: skip

    with torch.cuda.device_of(theta):
        if chain:
            start = links(theta, given.rows, chunks)
        elif not whole:
            summary = gradient.new_empty((given.rows, chunks, 4))
            launch(True, summary, summary)
            zero = theta.new_zeros((given.rows, 1))
            start = floats((carries or linear_carries)(summary[..., :2], summary[..., 2:], zero, reverse=True))
        launch(False, start, gradient)
    return *sums.results(before), initial_gradient


def green_backward(
    rows: Rows, theta: Tensor, green: Tensor, gradient: Tensor, hopping: bool, tile: Tile
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of a, l, u and z through G, shaped as the operands; those of l and u are empty without `hopping`."""
    given = operands(*rows[:3])
    chunks = given.chunks(tile)
    sums = Sums(rows, given, hopping, chunks, chunks == 1)
    if given.rows == 0:
        return sums.results()
    gradient = floats(gradient.contiguous())
    shared = dict(given.flags, HOPPING=hopping, MASKED=given.masked(tile), **tile.options)
    left, right = gradient, gradient

    def launch(reduce: bool, left: Tensor, right: Tensor, summary: Tensor) -> None:
        green_backward_kernel[(given.rows, chunks)](
            *given.hopping, floats(theta), floats(green), gradient, left, right, summary, *sums.pointers(),
            given.heads, given.sites, chunks, REDUCE=reduce, WHOLE=chunks == 1, **shared,
        )  # fmt: skip

    with torch.cuda.device_of(theta):
        if chunks > 1:
            summary = gradient.new_empty((given.rows, chunks, 8))
            launch(True, summary, summary, summary)
            zero = theta.new_zeros((given.rows, 1))
            left = floats(linear_carries(summary[..., 0:2], summary[..., 2:4], zero, reverse=False))
            right = floats(linear_carries(summary[..., 4:6], summary[..., 6:8], zero, reverse=True))
        launch(False, left, right, gradient)
    return sums.results()


def links(like: Tensor, rows: int, chunks: int) -> Tensor:
    """What the chunks of one launch hand a number on by, beside `like`."""
    return torch.full((rows * chunks + 1,), -1, dtype=torch.int64, device=like.device)


class Sums:
    """Where a backward kernel writes the gradients of a, l, u and z, and what is left to do with its sums by chunk."""

    def __init__(self, rows: Rows, given: Operands, hopping: bool, chunks: int, whole: bool):
        shape = (given.rows, given.sites)
        self._rows = rows
        constant = given.flags["CONSTANT"] and hopping
        self._by_chunk = constant and not whole
        edge = 0 if not hopping or self._by_chunk else given.rows if constant else shape
        self._diagonal = rows.diagonal.new_empty(shape)
        self._lower = rows.lower.new_empty(edge)
        self._upper = rows.upper.new_empty(edge)
        self._energy = rows.energy.new_empty((given.rows, chunks))
        self._couplings = rows.energy.new_empty((given.rows, chunks) if self._by_chunk else 0)

    def pointers(self) -> tuple[Tensor, ...]:
        return tuple(floats(x) for x in (self._diagonal, self._lower, self._upper, self._energy, self._couplings))

    def results(self, before: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Gradients shaped as the operands; `before` (R,) is what l loses where it is one number a row."""
        rows = self._rows
        lower, upper = self._lower, self._upper
        if self._by_chunk:
            couplings = _over_chunks(self._couplings)
            lower, upper = couplings * rows.upper.conj(), couplings * rows.lower.conj()
            lower = lower if before is None else lower - before.conj()
        elif lower.numel():
            lower, upper = lower.view(rows.lower.shape), upper.view(rows.upper.shape)
        return self._diagonal.view(rows.diagonal.shape), lower, upper, _over_chunks(self._energy)


def _over_chunks(sums: Tensor) -> Tensor:
    return sums[:, 0] if sums.shape[1] == 1 else sums.sum(1)


def moebius_carries(summary: Tensor, initial: Tensor) -> Tensor:
    """theta before each chunk (R, C) from the chunks' matrices (R, C, 8) and theta before the row (R,)."""
    rows, chunks, _ = summary.shape
    start = initial.new_empty((rows, chunks))
    block = _carry_block(chunks)
    moebius_carry_kernel[(rows,)](summary, floats(initial), floats(start), chunks, BLOCK=block, num_warps=block // 32)
    return start


def linear_carries(factor: Tensor, term: Tensor, initial: Tensor, reverse: bool) -> Tensor:
    """x before each chunk (R, C, W) of x -> f x + b; f (R, C, 2), b (R, C, ..., 2) floats, initial (R, W) complex.

    With `reverse` the row is run from its end, and "before" means after.
    """
    rows, chunks = factor.shape[:2]
    width = initial.shape[1]
    start = initial.new_empty((rows, chunks, width))
    block = _carry_block(chunks)
    linear_carry_kernel[(rows, width)](
        factor, factor.stride(1), term, term.stride(1), floats(initial.contiguous()), floats(start), chunks, width,
        REVERSE=reverse, BLOCK=block, num_warps=block // 32,
    )  # fmt: skip
    return start


def _carry_block(chunks: int) -> int:
    """Lanes of a carry kernel: the chunks as a power of two, from one warp to sixteen."""
    block = 32
    while block < min(chunks, 512):
        block *= 2
    return block
