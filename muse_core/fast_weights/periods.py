"""The running period of fast weights: what was written in it, and what filters make of it when it ends.

Shapes: B batch, N tokens, H heads, K key width, M value width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import Period, State

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


def state_dtype(writes: Writes) -> torch.dtype:
    """Of W and of everything that is carried: fp32 at least."""
    return reduce(torch.promote_types, (x.dtype for x in writes), torch.float32)


def start_of_stream(writes: Writes) -> dict[str, Any]:
    """The state before the first token: W = 0 (B, H, K, M), a period just begun."""
    batch, _, heads, key_width = writes.key.shape
    zeros = writes.key.new_zeros(batch, heads, key_width, writes.value.shape[-1], dtype=state_dtype(writes))
    return {
        "weights": zeros,
        "period_start": zeros,
        "log_decay": zeros[..., 0, 0],
        "write_scale": zeros[..., 0, 0],
        "reset": zeros[:, 0, 0, 0].bool(),
    }


def noise_scale(writes: Writes) -> Tensor:
    """(B, N, H): β² ‖k‖² ‖v‖² / (K M), the mean square of the entries that one write adds."""
    dtype = state_dtype(writes)
    key, value = (x.to(dtype).square().mean(-1) for x in (writes.key, writes.value))
    return writes.rate.to(dtype).square() * key * value


def running(state: Mapping[str, Any], log_decay: Tensor, scale: Tensor, resets: Tensor | None) -> dict[str, Tensor]:
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


def filtered(filters: Sequence[tuple[str, Apply]], state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state after a period's end, with the next period begun, and the filters' measures."""
    ended = Period(state["log_decay"], state["write_scale"], state["reset"])
    before = state["period_start"].masked_fill(ended.reset[:, None, None, None], 0.0)
    weights, earlier = state["weights"], state.get("filters", {})
    states: dict[str, State] = {}
    metrics: dict[str, Tensor] = {}
    for position, (name, apply) in enumerate(filters):
        weights, kept, measured = apply(before, weights, ended, earlier.get(str(position)))
        if kept is not None:
            states[str(position)] = kept
        metrics.update({f"{name}/{key}": value for key, value in measured.items()})
    begun: dict[str, Any] = {
        "weights": weights,
        "period_start": weights,
        "log_decay": torch.zeros_like(ended.log_decay),
        "write_scale": torch.zeros_like(ended.write_scale),
        "reset": torch.zeros_like(ended.reset),
    }
    if states:  # in place, as the measures: torch 2.6 compiles no union of dicts
        begun["filters"] = states
    return begun, metrics


def combined(applied: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Measures of several periods as one, by their suffix."""
    reductions: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}
    return {
        name: reductions.get(name.rpartition("_")[2], torch.mean)(torch.stack([metrics[name] for metrics in applied]))
        for name in (applied[0] if applied else ())
    }
