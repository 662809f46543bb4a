"""What every backend of trace attention checks and derives from its arguments before computing.

Shapes: B batch, N tokens, S slots carried in, H query heads, G key heads, K key width, M value width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import checks_values

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Carried(NamedTuple):
    """What one call hands to the next: `final` of the one is `initial` of the other."""

    key: Tensor
    """(B, S, G, K), of the tokens before; with a window the last window − 1 of them."""
    value: Tensor
    """(B, S, G, M)."""
    visible: Tensor
    """(B, S) bool, true for slots of the document that runs on: the last ones of each row."""
    squares: Tensor
    """(B, H): Σ‖p‖² over the rows of the document so far, float32 or float64."""


class Traced(NamedTuple):
    """What a call computes for every token."""

    output: Tensor
    """s_t Σ_j p_tj v_j, (B, N, H, M), in the dtype of query, key and value."""
    scale: Tensor
    """s_t in (0, 1], (B, N, H), float32 or float64."""
    squares: Tensor
    """Q_t, Σ‖p‖² over the document's rows up to t before scaling, (B, N, H), as `scale`."""


@dataclass(frozen=True)
class Problem:
    """A checked call. Queries are the last N of the S + N slots of key and value."""

    query: Tensor
    key: Tensor
    value: Tensor
    bound: Tensor
    """(B, N, H), float32 or float64."""
    squares: Tensor | None
    """Q before the first token, (B, H), or None for zero."""
    resets: Tensor | None
    first: Tensor | None
    """(B, N) int32, the first slot that a query sees; it sees all from there to its own. None: from slot 0."""
    window: int | None
    knee: float
    logit_scale: float

    @property
    def slots(self) -> int:
        """S."""
        return self.key.shape[1] - self.query.shape[1]

    @property
    def state_dtype(self) -> torch.dtype:
        """Of scales and sums."""
        return self.bound.dtype


def checked(compute: Callable[[Problem], Traced]) -> Callable[..., tuple[Traced, Carried]]:
    """A backend's `trace_attention`: `compute` behind the one signature, check and carried state of all backends.

    The result has the name and the docstring of `compute`.
    """

    def trace_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bound: Tensor,
        *,
        window: int | None = None,
        knee: float = 0.5,
        logit_scale: float | None = None,
        initial: Carried | None = None,
        resets: Tensor | None = None,
    ) -> tuple[Traced, Carried]:
        _check(query, key, value, bound, window, knee, logit_scale, initial, resets)
        dtype = reduce(torch.promote_types, (query.dtype, key.dtype, value.dtype))
        query, key, value = (x.to(dtype) for x in (query, key, value))
        precision = reduce(torch.promote_types, (dtype, bound.dtype), torch.float32)
        carried_squares = None
        if initial is not None:
            key = torch.cat((initial[0].to(dtype), key), dim=1)
            value = torch.cat((initial[1].to(dtype), value), dim=1)
            carried_squares = initial[3].to(precision)
        visible = None if initial is None else initial[2]
        first = first_slots(query.shape[:2], visible, resets, window, query.device)
        factor = query.shape[-1] ** -0.5 if logit_scale is None else logit_scale
        bound = bound.to(precision).expand(query.shape[:3])
        traced = compute(Problem(query, key, value, bound, carried_squares, resets, first, window, knee, factor))
        return traced, _final(key, value, traced.squares[:, -1], visible, resets, window)

    trace_attention.__name__, trace_attention.__qualname__ = compute.__name__, compute.__qualname__
    trace_attention.__module__, trace_attention.__doc__ = compute.__module__, compute.__doc__
    return trace_attention


def latest_start(resets: Tensor) -> Tensor:
    """(B, N) int64: the token at which each token's document started in this call, −1 where it was carried in."""
    index = torch.arange(resets.shape[1], device=resets.device)
    return torch.where(resets, index, -1).cummax(1).values


def sums_in_documents(x: Tensor, initial: Tensor | None, resets: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of x (B, N, H) over the tokens of its document up to each token, and up to the one before, in float64.
    ``initial`` (B, H) is the sum before the first token, of the document that runs on; None is zero."""
    own = x.double()
    after = own.cumsum(1)
    base = (torch.zeros_like(own[:, 0]) if initial is None else -initial.double())[:, None]
    if resets is not None:
        start = latest_start(resets)[..., None].expand_as(after)
        base = torch.where(start < 0, base, (after - own).gather(1, start.clamp(min=0)))
    return after - base, after - own - base


def first_slots(
    shape: tuple[int, int], visible: Tensor | None, resets: Tensor | None, window: int | None, device: torch.device
) -> Tensor | None:
    """`Problem.first`: where the document starts, or the window if that is later. It never falls along the tokens."""
    if visible is None and resets is None and (window is None or window >= shape[1]):
        return None
    batch, tokens = shape
    slots = 0 if visible is None else visible.shape[1]
    first = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
    if visible is not None:
        first = first + (slots - visible.sum(1, keepdim=True))
    if resets is not None:
        start = latest_start(resets)
        first = torch.where(start < 0, first, start + slots)
    if window is not None:
        first = torch.maximum(first, torch.arange(tokens, device=device) + (slots - window + 1))
    return first.to(torch.int32)


def _final(
    key: Tensor, value: Tensor, squares: Tensor, visible: Tensor | None, resets: Tensor | None, window: int | None
) -> Carried:
    batch, slots = key.shape[:2]
    tokens = slots if visible is None else slots - visible.shape[1]
    running = torch.ones(batch, tokens, dtype=torch.bool, device=key.device)
    if resets is not None:
        running = torch.arange(tokens, device=key.device) >= latest_start(resets)[:, -1:]
    if visible is not None:
        if resets is not None:
            visible = visible & ~resets.any(1, keepdim=True)
        running = torch.cat((visible, running), dim=1)
    kept = slots if window is None else min(slots, window - 1)
    return Carried(key[:, slots - kept :], value[:, slots - kept :], running[:, slots - kept :], squares)


def _check(query, key, value, bound, window, knee, logit_scale, initial, resets) -> None:
    name = "trace_attention"
    if query.ndim != 4 or 0 in query.shape[1:]:
        raise ValueError(f"{name}: query must be (B, N, H, K) with a token at least, got {tuple(query.shape)}")
    batch, tokens, heads, width = query.shape
    if key.ndim != 4 or (key.shape[0], key.shape[1], key.shape[3]) != (batch, tokens, width):
        _refuse("key", "(B, N, G, K)", key, query)
    groups = key.shape[2]
    if groups < 1 or heads % groups:
        raise ValueError(f"{name}: the {heads} heads of query are not a multiple of the {groups} of key")
    if value.ndim != 4 or value.shape[:3] != key.shape[:3] or value.shape[3] < 1:
        _refuse("value", "(B, N, G, M)", value, query)
    try:
        torch.broadcast_shapes(bound.shape, query.shape[:3])
        fits = bound.ndim <= 3
    except RuntimeError:
        fits = False
    if not fits:
        _refuse("bound", "broadcastable to (B, N, H)", bound, query)
    if resets is not None and (tuple(resets.shape) != (batch, tokens) or resets.dtype != torch.bool):
        raise ValueError(f"{name}: resets must be bool {(batch, tokens)}, got {resets.dtype} {tuple(resets.shape)}")
    if window is not None and window < 1:
        raise ValueError(f"{name}: window must be at least 1, got {window}")
    if not 0.0 <= knee < 1.0:
        raise ValueError(f"{name}: knee must be at least 0 and below 1, got {knee}")
    if logit_scale is not None and not logit_scale > 0:
        raise ValueError(f"{name}: logit_scale must be positive, got {logit_scale}")
    if initial is not None:
        _check_initial(initial, (batch, heads, groups, width, value.shape[3]))
    for what, x in (("query", query), ("key", key), ("value", value), ("bound", bound)):
        if x.dtype not in DTYPES:
            raise ValueError(f"{name}: {what} must be float16, bfloat16, float32 or float64, got {x.dtype}")
        if x.device != query.device:
            raise ValueError(f"{name}: {what} is on {x.device}, query on {query.device}")
    if checks_values():
        for what, x in (("query", query), ("key", key), ("value", value)):
            if not x.isfinite().all():
                raise ValueError(f"{name}: {what} holds values that are not finite")
        if not (bound > 0).all():
            raise ValueError(f"{name}: bound must be positive, its smallest is {bound.min().item():g}")


def _check_initial(initial, sizes: tuple[int, int, int, int, int]) -> None:
    if not isinstance(initial, (tuple, list)) or len(initial) != 4:
        raise ValueError(
            "trace_attention: initial must be (key, value, visible, squares), the final of an earlier call, got "
            f"{type(initial).__name__}"
        )
    batch, heads, groups, width, value_width = sizes
    slots = initial[0].shape[1] if initial[0].ndim == 4 else 0
    expected = {
        "key": (batch, slots, groups, width),
        "value": (batch, slots, groups, value_width),
        "visible": (batch, slots),
        "squares": (batch, heads),
    }
    for (what, shape), x in zip(expected.items(), initial, strict=True):
        if tuple(x.shape) != shape:
            raise ValueError(f"trace_attention: initial {what} must be {shape}, got {tuple(x.shape)}")
    if initial[2].dtype != torch.bool:
        raise ValueError(f"trace_attention: initial visible must be bool, got {initial[2].dtype}")


def _refuse(name: str, wanted: str, got: Tensor, query: Tensor) -> None:
    raise ValueError(
        f"trace_attention: {name} must be {wanted} beside query {tuple(query.shape)}, got {tuple(got.shape)}"
    )
