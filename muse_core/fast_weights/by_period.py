"""Fast weights over the absolute period grid: the one place where filters act and where their state is carried.

Shapes: B batch, N tokens, H heads, K key width, M value width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import State, Tokens
from muse_core.fast_weights.periods import Apply, Writes, combined, filtered, noise_scale, running, start_of_stream
from muse_core.fast_weights.whole_periods import Kernel, run_whole_periods

FEWEST_AT_ONCE = 8
"""Whole periods from which they run at once. That computes about twice as much, in order to be sequential in the
weights alone: on one CPU core a delta layer takes 0.7 to 1.2 times as long either way, on a GPU a call of the kernel is
a launch and few periods fill it badly."""


class Reading(NamedTuple):
    """What comes back."""

    output: Tensor
    """(B, N, H, M): W_tᵀ q_t."""
    before: Tensor | None
    """(B, N, H, M): W_{t−1}ᵀ q_t, zero where a document starts; None unless asked for."""
    state: State
    """``weights`` (B, H, K, M); with filters also the running period: ``period_start`` (B, H, K, M), ``log_decay`` and
    ``write_scale`` (B, H), ``reset`` (B,) bool, and the ``filters``' states by position, for those that have one."""
    metrics: dict[str, Tensor]
    """The filters' measures over the periods that ended, under ``<name>/<measure>``; absent when none ended."""


def by_period(
    kernel: Kernel,
    filters: Sequence[tuple[str, Apply]],
    writes: Writes,
    state: State,
    tokens: Tokens,
    *,
    rule: str,
    period: int,
    read_before: bool = False,
) -> Reading:
    """Run ``kernel`` over all tokens and apply ``filters`` in order wherever a period ends.

    ``filters`` are (name, filter) pairs; the name is that of the filter's module among the layer's filters, so that it
    gets its own metrics back (``contracts.UpdatesStatistics``).

    A period ends after every token whose stream position plus one is a multiple of ``period``; positions count from
    ``tokens.offset``, so any split of a stream gives the same result. Without filters the grid does not matter and the
    kernel runs once. ``read_before`` doubles the kernel calls. Where ``tokens.valid`` is false nothing decays and
    nothing is written.

    Raises ValueError for ragged rows (``tokens.valid``) beside filters: rows would leave the common grid.
    Source: mathematics §3 "Memory filters".
    """
    if not filters:
        writes, resets = _unpadded(writes, tokens)
        initial = None if state is None else state["weights"]
        output, before, weights = _run(kernel, rule, writes, initial, resets, read_before)
        return Reading(output, before, {"weights": weights}, {})
    if tokens.valid is not None:
        raise ValueError(
            "filters act on one period grid for all rows, which right-padded rows (tokens.valid) would leave; "
            "pass rows of equal length or a memory without filters"
        )

    state = start_of_stream(writes) if state is None else state
    scale = noise_scale(writes)
    outputs: list[Tensor] = []
    befores: list[Tensor | None] = []
    applied: list[dict[str, Tensor]] = []
    for start, stop, ended in stretches(tokens.offset, writes.query.shape[1], period):
        part = Writes(*(x[:, start:stop] for x in writes))
        resets = None if tokens.resets is None else tokens.resets[:, start:stop]
        if ended > 1:
            output, before, state, metrics = run_whole_periods(
                kernel, rule, filters, part, scale[:, start:stop], state, resets, period=period, read_before=read_before
            )
            applied.extend(metrics)
        else:
            output, before, weights = _run(kernel, rule, part, state["weights"], resets, read_before)
            # Spelled out: torch.compile of torch 2.6 does not know the union of tables.
            state = {**state, "weights": weights, **running(state, part.log_decay, scale[:, start:stop], resets)}
            if ended:
                state, measured = filtered(filters, state)
                applied.append(measured)
        outputs.append(output)
        befores.append(before)
    return Reading(
        torch.cat(outputs, dim=1), torch.cat(befores, dim=1) if read_before else None, state, combined(applied)
    )


def stretches(offset: int, length: int, period: int) -> Iterator[tuple[int, int, int]]:
    """Cut ``length`` tokens that start at stream position ``offset`` at the ends of periods, and leave whole periods
    together where there are enough of them.

    Yields (start, stop, how many periods end) in token indices; a last one that does not reach a period's end has 0.
    """
    head = min(-offset % period, length)
    whole = (length - head) // period
    if head:
        yield 0, head, int((offset + head) % period == 0)
    tail = head + whole * period
    step = whole if whole >= FEWEST_AT_ONCE else 1
    for number in range(0, whole, step):
        yield head + number * period, head + (number + step) * period, step
    if tail < length:
        yield tail, length, 0


def _run(
    kernel: Kernel,
    rule: str,
    writes: Writes,
    initial: Tensor | None,
    resets: Tensor | None,
    read_before: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    output, final = kernel(*writes, rule=rule, initial=initial, resets=resets, read="after")
    before = kernel(*writes, rule=rule, initial=initial, resets=resets, read="before")[0] if read_before else None
    return output, before, final


def _unpadded(writes: Writes, tokens: Tokens) -> tuple[Writes, Tensor | None]:
    if tokens.valid is None:
        return writes, tokens.resets
    padding = ~tokens.valid[..., None]
    writes = writes._replace(
        log_decay=writes.log_decay.masked_fill(padding, 0.0), rate=writes.rate.masked_fill(padding, 0.0)
    )
    return writes, None if tokens.resets is None else tokens.resets & tokens.valid


