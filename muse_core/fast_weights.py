"""Fast weights over the absolute period grid: the one place where filters act and where their state is carried.

Many whole periods run at once, and only the states at their ends are sequential: within a period W is linear in the
weights that it starts from, so every period runs in parallel from zero, and the starts follow one after the other
through the filters. One kernel call a period would be bound by launches.

Shapes: B batch, N tokens, P periods, L tokens of a period, H heads, K key width, M value width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import Period, State, Tokens

Apply = Callable[[Tensor, Tensor, Period, State], tuple[Tensor, State, dict[str, Tensor]]]
"""What calling a ``contracts.Filter`` means: (before, after, period, state) → weights, state, measures."""
Kernel = Callable[..., tuple[Tensor, Tensor]]
"""``muse_kernels.fast_weights``, or what a backend offers in its place."""
FEWEST_AT_ONCE = 8
"""Whole periods from which they run at once. That computes about twice as much, in order to be sequential in the
weights alone: on one CPU core a delta layer takes 0.7 to 1.2 times as long either way, on a GPU a call of the kernel is
a launch and few periods fill it badly."""

WIDEST = 128
"""Columns of values that every kernel takes."""


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
    gets its own measures back (``contracts.UpdatesStatistics``).

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
    cuts = list(stretches(tokens.offset, writes.query.shape[1], period))
    # Split and not sliced: the gradient of a slice is as long as what it was cut from.
    lengths = [stop - start for start, stop, _ in cuts]
    parts = zip(*(x.split(lengths, dim=1) for x in (*writes, scale)), strict=True)
    for (start, stop, ended), (*numbers, noise) in zip(cuts, parts, strict=True):
        part = Writes(*numbers)
        resets = None if tokens.resets is None else tokens.resets[:, start:stop]
        if ended > 1:
            output, before, state, metrics = run_whole_periods(
                kernel, rule, filters, part, noise, state, resets, period=period, read_before=read_before
            )
            applied.extend(metrics)
        else:
            output, before, weights = _run(kernel, rule, part, state["weights"], resets, read_before)
            # Spelled out: torch.compile of torch 2.6 does not know the union of tables.
            state = {**state, "weights": weights, **running(state, part.log_decay, noise, resets)}
            if ended:
                state, measured = filtered(filters, state)
                applied.append(measured)
        outputs.append(output)
        befores.append(before)
    return Reading(_joined(outputs), _joined(befores) if read_before else None, state, combined(applied))


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim=1)


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
        return writes, tokens.starts()
    padding = ~tokens.valid[..., None]
    writes = writes._replace(
        log_decay=writes.log_decay.masked_fill(padding, 0.0), rate=writes.rate.masked_fill(padding, 0.0)
    )
    return writes, tokens.starts()


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
    if log_decay.shape[1] == 1:  # the step of a generation
        total, written = log_decay[:, 0], scale[:, 0]
    else:
        passed = log_decay.cumsum(1)
        total = passed[:, -1]
        written = ((2 * (total[:, None] - passed)).exp() * scale).sum(1)
    return {
        "log_decay": earlier["log_decay"] + total,
        "write_scale": (2 * total).exp() * earlier["write_scale"] + written,
        "reset": earlier["reset"],
    }


def filtered(filters: Sequence[tuple[str, Apply]], state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state after a period's end, with the next period begun, and the filters' measures, scalars named
    ``<filter>/<measure>``. ``state``: ``weights`` and ``period_start`` (B, H, K, M), and the fields of ``Period``."""
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
    """Scalars of several periods as one, by suffix as ``LayerOutput.metrics``; all have the first one's names."""
    reductions: dict[str, Callable[[Tensor], Tensor]] = {"sum": torch.sum, "min": torch.amin, "max": torch.amax}
    return {
        name: reductions.get(name.rpartition("_")[2], torch.mean)(torch.stack([metrics[name] for metrics in applied]))
        for name in (applied[0] if applied else ())
    }


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
            state = {**state, "weights": weights, **{name: value[:, number] for name, value in sums.items()}}
            state, measured = filtered(filters, state)
            metrics.append(measured)
        outputs = [
            _with_start(read.output, query.output, torch.stack(starts, 1).flatten(0, 1))
            .unflatten(0, (batch, periods))
            .flatten(1, 2)
            for read, query in zip(reads, carried)
        ]
    return PeriodsResult(outputs[0], outputs[1] if read_before else None, state, metrics)


def over_parts(
    kernel: Kernel, gather: Callable[[Tensor], Tensor], rank: int, writes: Writes, *, rule: str,
    initial: Tensor | None, resets: Tensor | None, read: str,
) -> tuple[Tensor, Tensor]:
    """Output (B, N, H, M) and final weights of ``kernel`` over the tokens of all processes, of which this has part
    ``rank``; ``gather`` gives what all have, (C, …). Every part tells what it adds to the weights and by what it
    multiplies them."""
    widths = [writes.value.shape[-1], writes.key.shape[-1]]
    if rule == "hebbian" or sum(widths) > WIDEST:
        output, final = kernel(*writes, rule=rule, resets=resets, read=read)
        carry = _propagated(kernel, rule, writes, resets, read)
    else:  # what concerns keys alone is computed once
        both = _beside_identity(kernel, rule, writes, resets, read)
        (output, query), (final, across) = (x.split(widths, dim=-1) for x in both)
        carry = _Read(query, across)
    with torch.autocast(final.device.type, enabled=False):
        told = torch.cat((final.flatten(2), carry.final.reshape(*final.shape[:2], -1)), dim=-1)
        starts = [torch.zeros_like(final) if initial is None else initial.to(final.dtype)]
        for part in gather(told):
            added, across = part.split((final[0, 0].numel(), part.shape[-1] - final[0, 0].numel()), dim=-1)
            starts.append(added.view_as(final) + _transited(across.reshape(carry.final.shape), starts[-1]))
        return _with_start(output, carry.output, starts[rank]), starts[-1]


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
    nothing = writes._replace(value=writes.value.detach()[..., :0])
    return _Read(*_beside_identity(kernel, rule, nothing, resets, read))


def _beside_identity(
    kernel: Kernel, rule: str, writes: Writes, resets: Tensor | None, read: str
) -> tuple[Tensor, Tensor]:
    """The values' M columns from zero, and behind them K columns without values from the identity."""
    batch, _, heads, key_width = writes.key.shape
    width = writes.value.shape[-1]
    identity = torch.eye(key_width, dtype=state_dtype(writes), device=writes.key.device)
    initial = torch.nn.functional.pad(identity, (width, 0)).expand(batch, heads, -1, -1)
    wider = writes._replace(value=torch.nn.functional.pad(writes.value, (0, key_width)))
    return kernel(*wider, rule=rule, initial=initial, resets=resets, read=read)


def _decayed(writes: Writes, resets: Tensor | None, read: str) -> _Read:
    """The hebbian case: e^{Σg} q_t and e^{Σg}, zero once a document has started."""
    log_decay = writes.log_decay.to(state_dtype(writes))
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
