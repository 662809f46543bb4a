"""Fast weights over the absolute period grid: the one place where filters act and where their state is carried.

Shapes: B batch, N tokens, H heads, K key width, M value width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import Period, State, Tokens

Kernel = Callable[..., tuple[Tensor, Tensor]]
"""``muse_kernels.fast_weights`` with its rule already bound."""
Apply = Callable[[Tensor, Tensor, Period, State], tuple[Tensor, State, dict[str, Tensor]]]
"""What calling a ``contracts.Filter`` means: (before, after, period, state) → weights, state, measures."""


class Writes(NamedTuple):
    """What a memory layer hands to its kernel, per token."""

    query: Tensor
    """(B, N, H, K)."""
    key: Tensor
    """(B, N, H, K)."""
    value: Tensor
    """(B, N, H, M)."""
    log_decay: Tensor
    """(B, N, H): g ≤ 0."""
    rate: Tensor
    """(B, N, H): β ≥ 0."""


class Reading(NamedTuple):
    """What comes back."""

    output: Tensor
    """(B, N, H, M): W_tᵀ q_t."""
    before: Tensor | None
    """(B, N, H, M): W_{t−1}ᵀ q_t, zero where a document starts; None unless asked for."""
    state: State
    """``weights`` (B, H, K, M); with filters also the running period: ``period_start`` (B, H, K, M), ``log_decay`` and
    ``write_scale`` (B, H), ``reset`` (B,) bool, and the ``filters``' states by position, for those that have one."""
    measures: dict[str, Tensor]
    """The filters' measures over the periods that ended, under ``<filter>/<measure>``; absent when none ended."""


def by_period(
    kernel: Kernel,
    filters: Sequence[tuple[str, Apply]],
    writes: Writes,
    state: State,
    tokens: Tokens,
    *,
    period: int,
    read_before: bool = False,
) -> Reading:
    """Run ``kernel`` over all tokens and apply ``filters``, (name, filter) pairs, in order wherever a period ends.

    A period ends after every token whose stream position plus one is a multiple of ``period``; positions count from
    ``tokens.offset``, so any split of a stream gives the same result. Without filters the grid does not matter and the
    kernel runs once. ``read_before`` costs a second kernel call. Where ``tokens.valid`` is false nothing decays and
    nothing is written.

    Raises ValueError for ragged rows (``tokens.valid``) beside filters: rows would leave the common grid.
    Source: mathematics §3 "Memory filters".
    """
    if not filters:
        writes, resets = _unpadded(writes, tokens)
        initial = None if state is None else state["weights"]
        output, before, weights = _run(kernel, writes, initial, resets, read_before)
        return Reading(output, before, {"weights": weights}, {})
    if tokens.valid is not None:
        raise ValueError(
            "filters act on one period grid for all rows, which right-padded rows (tokens.valid) would leave; "
            "pass rows of equal length or a memory without filters"
        )

    state = _start(writes) if state is None else state
    scale = _noise_scale(writes)
    outputs: list[Tensor] = []
    befores: list[Tensor] = []
    applied: list[dict[str, Tensor]] = []
    for start, stop, ends in segments(tokens.offset, writes.query.shape[1], period):
        part = Writes(*(x[:, start:stop] for x in writes))
        resets = None if tokens.resets is None else tokens.resets[:, start:stop]
        output, before, weights = _run(kernel, part, state["weights"], resets, read_before)
        outputs.append(output)
        if before is not None:
            befores.append(before)
        state = state | {"weights": weights} | _running(state, part.log_decay, scale[:, start:stop], resets)
        if ends:
            state, measures = _filtered(filters, state)
            applied.append(measures)
    return Reading(
        torch.cat(outputs, dim=1), torch.cat(befores, dim=1) if read_before else None, state, _combined(applied)
    )


def segments(offset: int, length: int, period: int) -> Iterator[tuple[int, int, bool]]:
    """Cut ``length`` tokens that start at stream position ``offset`` at the ends of periods.

    Yields (start, stop, whether a period ends at stop) in token indices.
    """
    start = 0
    while start < length:
        stop = start + period - (offset + start) % period
        yield start, min(stop, length), stop <= length
        start = stop


def _run(
    kernel: Kernel,
    writes: Writes,
    initial: Tensor | None,
    resets: Tensor | None,
    read_before: bool,
) -> tuple[Tensor, Tensor | None, Tensor]:
    output, final = kernel(*writes, initial=initial, resets=resets, read="after")
    before = kernel(*writes, initial=initial, resets=resets, read="before")[0] if read_before else None
    return output, before, final


def _unpadded(writes: Writes, tokens: Tokens) -> tuple[Writes, Tensor | None]:
    if tokens.valid is None:
        return writes, tokens.resets
    padding = ~tokens.valid[..., None]
    writes = writes._replace(
        log_decay=writes.log_decay.masked_fill(padding, 0.0), rate=writes.rate.masked_fill(padding, 0.0)
    )
    return writes, None if tokens.resets is None else tokens.resets & tokens.valid


def _state_dtype(writes: Writes) -> torch.dtype:
    return reduce(torch.promote_types, (x.dtype for x in writes), torch.float32)


def _start(writes: Writes) -> dict[str, Any]:
    batch, _, heads, key_width = writes.key.shape
    zeros = writes.key.new_zeros(batch, heads, key_width, writes.value.shape[-1], dtype=_state_dtype(writes))
    return {
        "weights": zeros,
        "period_start": zeros,
        "log_decay": zeros[..., 0, 0],
        "write_scale": zeros[..., 0, 0],
        "reset": zeros[:, 0, 0, 0].bool(),
    }


def _noise_scale(writes: Writes) -> Tensor:
    """(B, N, H): β² ‖k‖² ‖v‖² / (K M), the mean square of the entries that one write adds."""
    dtype = _state_dtype(writes)
    key, value = (x.to(dtype).square().mean(-1) for x in (writes.key, writes.value))
    return writes.rate.to(dtype).square() * key * value


def _running(state: Mapping[str, Any], log_decay: Tensor, scale: Tensor, resets: Tensor | None) -> dict[str, Tensor]:
    """The period's sums continued over some tokens (B, n, H); they restart with the latest document.

    The first token's decay counts, after a reset as at the start of a stream, though it multiplies zero weights.
    """
    log_decay = log_decay.to(scale.dtype)
    earlier = {"log_decay": state["log_decay"], "write_scale": state["write_scale"], "reset": state["reset"]}
    if resets is not None:
        document = resets.cumsum(1)
        older = (document != document[:, -1:])[..., None]
        log_decay, scale = log_decay.masked_fill(older, 0.0), scale.masked_fill(older, 0.0)
        started = resets.any(1)
        earlier = {
            "log_decay": earlier["log_decay"].masked_fill(started[:, None], 0.0),
            "write_scale": earlier["write_scale"].masked_fill(started[:, None], 0.0),
            "reset": earlier["reset"] | started,
        }
    passed = log_decay.cumsum(1)
    total = passed[:, -1]
    written = ((2 * (total[:, None] - passed)).exp() * scale).sum(1)
    return {
        "log_decay": earlier["log_decay"] + total,
        "write_scale": (2 * total).exp() * earlier["write_scale"] + written,
        "reset": earlier["reset"],
    }


def _filtered(filters: Sequence[tuple[str, Apply]], state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state after a period's end, with the next period begun, and the filters' measures."""
    ended = Period(state["log_decay"], state["write_scale"], state["reset"])
    before = state["period_start"].masked_fill(ended.reset[:, None, None, None], 0.0)
    weights, earlier = state["weights"], state.get("filters", {})
    states: dict[str, State] = {}
    measures: dict[str, Tensor] = {}
    for position, (name, apply) in enumerate(filters):
        weights, kept, measured = apply(before, weights, ended, earlier.get(str(position)))
        if kept is not None:
            states[str(position)] = kept
        measures |= {f"{name}/{key}": value for key, value in measured.items()}
    return {
        "weights": weights,
        "period_start": weights,
        "log_decay": torch.zeros_like(ended.log_decay),
        "write_scale": torch.zeros_like(ended.write_scale),
        "reset": torch.zeros_like(ended.reset),
    } | ({"filters": states} if states else {}), measures


def _combined(applied: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Measures of several periods as one, by their suffix."""
    reductions: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}
    return {
        name: reductions.get(name.rpartition("_")[2], torch.mean)(torch.stack([measures[name] for measures in applied]))
        for name in (applied[0] if applied else ())
    }
