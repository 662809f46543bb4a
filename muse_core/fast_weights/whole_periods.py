"""Many whole periods of fast weights at once: only the states at their ends are sequential.

Within a period W is linear in the weights that it starts from, so every period runs in parallel from zero, and the
starts follow one after the other through the filters. One kernel call a period would be bound by launches.

Shapes: B batch, P periods, L tokens of a period, H heads, K key width, M value width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.fast_weights.periods import Apply, Writes, filtered, running, start_of_stream, state_dtype

Kernel = Callable[..., tuple[Tensor, Tensor]]
"""``muse_kernels.fast_weights``, or what a backend offers in its place."""


class PeriodsResult(NamedTuple):
    """What came out of P whole periods."""

    output: Tensor
    """(B, P L, H, M)."""
    before: Tensor | None
    """(B, P L, H, M), None unless asked for."""
    state: dict[str, Any]
    metrics: list[dict[str, Tensor]]
    """The filters' measures, one entry a period."""


def run_whole_periods(
    kernel: Kernel,
    rule: str,
    filters: Sequence[tuple[str, Apply]],
    writes: Writes,
    scale: Tensor,
    state: dict[str, Any],
    resets: Tensor | None,
    *,
    period: int,
    read_before: bool,
) -> PeriodsResult:
    """``writes`` of P whole periods from ``state`` at the start of one; ``scale`` (B, P L, H) is their noise.

    Costs two kernel calls for the delta rule (its transition is a matrix K x K, found by the kernel itself from the
    identity and no values) and one for the hebbian, twice that with ``read_before``.
    """
    batch, periods = writes.query.shape[0], writes.query.shape[1] // period
    parts = Writes(*(_folded(x, period) for x in writes))
    resets = None if resets is None else _folded(resets, period)
    sums = running(start_of_stream(parts), parts.log_decay, _folded(scale, period), resets)
    sums = {name: value.unflatten(0, (batch, periods)) for name, value in sums.items()}

    reads = [_Read(*kernel(*parts, rule=rule, resets=resets, read="after"))]
    carried = [_propagated(kernel, rule, parts, resets, "after")]
    if read_before:
        reads.append(_Read(*kernel(*parts, rule=rule, resets=resets, read="before")))
        carried.append(_propagated(kernel, rule, parts, resets, "before"))
    added = reads[0].final.unflatten(0, (batch, periods))
    across = carried[0].final.unflatten(0, (batch, periods))

    starts, metrics = [], []
    with torch.autocast(added.device.type, enabled=False):
        for number in range(periods):
            starts.append(state["weights"])
            weights = added[:, number] + _transited(across[:, number], state["weights"])
            state = state | {"weights": weights} | {name: value[:, number] for name, value in sums.items()}
            state, measured = filtered(filters, state)
            metrics.append(measured)
        outputs = [
            _with_start(read.output, query.output, torch.stack(starts, 1).flatten(0, 1))
            .unflatten(0, (batch, periods))
            .flatten(1, 2)
            for read, query in zip(reads, carried)
        ]
    return PeriodsResult(outputs[0], outputs[1] if read_before else None, state, metrics)


class _Read(NamedTuple):
    output: Tensor
    """(B P, L, H, M), or (B P, L, H, K) for queries carried back to the period's start."""
    final: Tensor
    """(B P, H, K, M), or the transition over the period: (B P, H, K, K), or (B P, H) where it is a number."""


def _folded(x: Tensor, period: int) -> Tensor:
    """(B, P L, …) → (B P, L, …)."""
    return x.unflatten(1, (-1, period)).flatten(0, 1)


def _propagated(kernel: Kernel, rule: str, writes: Writes, resets: Tensor | None, read: str) -> _Read:
    """How a period's start W reaches its tokens and its end: token t reads Wᵀ output_t of it, final · W is left."""
    if rule == "hebbian":
        return _decayed(writes, resets, read)
    batch, length, heads, key_width = writes.key.shape
    identity = torch.eye(key_width, dtype=state_dtype(writes), device=writes.key.device)
    return _Read(
        *kernel(
            *writes._replace(value=torch.zeros_like(writes.key)),
            rule=rule,
            initial=identity.expand(batch, heads, -1, -1),
            resets=resets,
            read=read,
        )
    )


def _decayed(writes: Writes, resets: Tensor | None, read: str) -> _Read:
    """The hebbian case: e^{Σg} q_t and e^{Σg}, zero once a document has started."""
    log_decay = writes.log_decay.to(state_dtype(writes))
    if resets is not None:
        # From a reset on nothing of the start is left; its own decay would only enlarge the exponents beside it.
        log_decay = log_decay.masked_fill(resets[..., None], 0.0)
    total = log_decay.cumsum(1)
    factor = (total if read == "after" else total - log_decay).exp()
    across = total[:, -1].exp()
    if resets is not None:
        gone = resets.cumsum(1) > 0
        factor = factor.masked_fill(gone[..., None], 0.0)
        across = across.masked_fill(gone[:, -1, None], 0.0)
    return _Read((factor[..., None] * writes.query).to(writes.query.dtype), across)


def _transited(across: Tensor, weights: Tensor) -> Tensor:
    return across[..., None, None] * weights if across.ndim == 2 else across @ weights


def _with_start(output: Tensor, query: Tensor, start: Tensor) -> Tensor:
    """(B P, L, H, M): ``output`` and Wᵀ ``query`` of the periods' starts W (B P, H, K, M), in the output's dtype."""
    return output + torch.einsum("blhk,bhkm->blhm", query.to(output.dtype), start.to(output.dtype))
