"""What every backend checks and derives from the arguments of `deep_memory` before computing.

Shapes: B batch, N tokens, H heads, K key width, M value width, E hidden width, P matrices of a memory, c window.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float32, torch.float64)
GATED, LINEAR = 3, 1
"""P of the two memories."""


class DeepMemoryState(NamedTuple):
    """A memory between two tokens. Its size depends neither on the tokens read nor on the chunk."""

    weights: Tensor
    """(B, H, P, K, E): W at the start of the chunk, which its tokens read and whose gradients they take."""
    momentum: Tensor
    """(B, H, P, K, E): S after the last token."""
    pending: Tensor
    """What the chunk's tokens subtract from W at its end: (B, H, P, K, E), or of an orthogonalised update the factor
    of its direction (B, H, 1, 1, 1). Zero at a chunk's start."""
    log_kept: Tensor
    """(B, H): log-decay summed since the chunk's start."""
    window_key: Tensor
    """(B, c - 1, H, K): keys of the last tokens, which later windows still contain."""
    window_value: Tensor
    """(B, c - 1, H, M)."""
    window_rate: Tensor
    """(B, c - 1, H): zero for tokens before the stream or of an earlier document."""


class DeepMemoryCall(NamedTuple):
    """The arguments of one call; `muse_kernels.deep_memory` says what they are."""

    query: Tensor
    key: Tensor
    value: Tensor
    rate: Tensor
    log_momentum: Tensor | None
    log_decay: Tensor
    weights: Tensor
    initial: DeepMemoryState | None
    resets: Tensor | None
    chunk: int
    offset: int
    window: int
    orthogonalise: bool
    recompute: int


class DeepMemoryLayout(NamedTuple):
    """Sizes and dtypes of one call."""

    batch: int
    tokens: int
    heads: int
    key_width: int
    value_width: int
    matrices: int
    hidden: int
    output_dtype: torch.dtype
    """Of the output: the promotion of query, key and value."""
    state_dtype: torch.dtype
    """Of the carried state: float64 where any input is, else float32."""

    @property
    def state_shape(self) -> tuple[int, ...]:
        """(B, H, P, K, E)."""
        return (self.batch, self.heads, self.matrices, self.key_width, self.hidden)


def checked(compute: Callable[[DeepMemoryCall, DeepMemoryLayout], tuple[Tensor, DeepMemoryState]]) -> Callable:
    """A backend's `deep_memory`: `compute` behind the one signature and the one check that all backends have."""

    def deep_memory(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rate: Tensor,
        log_momentum: Tensor | None,
        log_decay: Tensor,
        weights: Tensor,
        *,
        initial: DeepMemoryState | None = None,
        resets: Tensor | None = None,
        chunk: int = 16,
        offset: int = 0,
        window: int = 1,
        orthogonalise: bool = True,
        recompute: int = 1,
    ) -> tuple[Tensor, DeepMemoryState]:
        call = DeepMemoryCall(
            query,
            key,
            value,
            rate,
            log_momentum,
            log_decay,
            weights,
            initial,
            resets,
            chunk,
            offset % max(chunk, 1),
            window,
            orthogonalise,
            recompute,
        )
        return compute(call, check_deep_memory(call))

    deep_memory.__doc__, deep_memory.__module__ = compute.__doc__, compute.__module__
    return deep_memory


def check_deep_memory(call: DeepMemoryCall) -> DeepMemoryLayout:
    """The layout of a call; ValueError naming the argument and the shapes where they do not fit."""
    for name, least in (("chunk", 1), ("window", 1), ("recompute", 1)):
        if getattr(call, name) < least:
            raise ValueError(f"deep_memory: {name} must be at least {least}, got {getattr(call, name)}")
    query, value, weights = call.query, call.value, call.weights
    if query.ndim != 4 or query.shape[1] < 1:
        raise ValueError(f"deep_memory: query must be (B, N, H, K) with N at least 1, got {tuple(query.shape)}")
    batch, tokens, heads, key_width = query.shape
    if value.ndim != 4:
        raise ValueError(f"deep_memory: value must be (B, N, H, M), got {tuple(value.shape)}")
    if weights.ndim != 4 or weights.shape[1] not in (GATED, LINEAR):
        raise ValueError(
            f"deep_memory: weights must be (H, 3, K, E) of a gated memory or (H, 1, K, M) of a linear one, "
            f"got {tuple(weights.shape)}"
        )
    matrices, hidden = weights.shape[1], weights.shape[-1]
    value_width = key_width if matrices == GATED else hidden
    _check_tensors(call, (batch, tokens, heads, key_width, value_width, matrices, hidden))
    floats = [call.query, call.key, call.value, call.rate, call.log_momentum, call.log_decay, weights]
    floats += [] if call.initial is None else list(call.initial)
    dtypes = [x.dtype for x in floats if x is not None]
    for dtype in dtypes:
        if dtype not in DTYPES:
            raise ValueError(f"deep_memory: tensors must be bfloat16, float32 or float64, got {dtype}")
    return DeepMemoryLayout(
        *(batch, tokens, heads, key_width, value_width, matrices, hidden),
        output_dtype=reduce(torch.promote_types, (query.dtype, call.key.dtype, value.dtype)),
        state_dtype=reduce(torch.promote_types, dtypes, torch.float32),
    )


def _check_tensors(call: DeepMemoryCall, sizes: tuple[int, ...]) -> None:
    batch, tokens, heads, key_width, value_width, matrices, hidden = sizes
    per_token, state = (batch, tokens, heads), (batch, heads, matrices, key_width, hidden)
    expected = {
        "key": (call.key, "(B, N, H, K)", (*per_token, key_width)),
        "value": (call.value, "(B, N, H, M)", (*per_token, value_width)),
        "rate": (call.rate, "(B, N, H)", per_token),
        "log_momentum": (call.log_momentum, "(B, N, H)", per_token),
        "log_decay": (call.log_decay, "(B, N, H)", per_token),
        "weights": (call.weights, "(H, P, K, E)", (heads, matrices, key_width, hidden)),
        "resets": (call.resets, "(B, N)", (batch, tokens)),
    }
    if call.initial is not None:
        kept = call.window - 1
        pending = (batch, heads, 1, 1, 1) if call.orthogonalise else state
        shapes = {
            "weights": ("(B, H, P, K, E)", state),
            "momentum": ("(B, H, P, K, E)", state),
            "pending": ("(B, H, 1, 1, 1)" if call.orthogonalise else "(B, H, P, K, E)", pending),
            "log_kept": ("(B, H)", (batch, heads)),
            "window_key": ("(B, c - 1, H, K)", (batch, kept, heads, key_width)),
            "window_value": ("(B, c - 1, H, M)", (batch, kept, heads, value_width)),
            "window_rate": ("(B, c - 1, H)", (batch, kept, heads)),
        }
        expected |= {f"initial.{k}": (getattr(call.initial, k), *shape) for k, shape in shapes.items()}
    for name, (tensor, letters, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"deep_memory: {name} must be {letters} = {shape} beside query {tuple(call.query.shape)} and weights "
                f"{tuple(call.weights.shape)}, got {tuple(tensor.shape)}"
            )
        if tensor.device != call.query.device:
            raise ValueError(f"deep_memory: {name} is on {tensor.device}, query on {call.query.device}")
    if call.resets is not None and call.resets.dtype != torch.bool:
        raise ValueError(f"deep_memory: resets must be bool, got {call.resets.dtype}")


def first_state(call: DeepMemoryCall, layout: DeepMemoryLayout, dtype: torch.dtype) -> DeepMemoryState:
    """The carried state in `dtype`, or that before the first token of a stream: the learned weights, nothing moved."""
    if call.initial is not None:
        state = DeepMemoryState(*(x.to(dtype) for x in call.initial))
        if call.offset:
            return state
        return state._replace(pending=torch.zeros_like(state.pending), log_kept=torch.zeros_like(state.log_kept))
    batch, heads, kept = layout.batch, layout.heads, call.window - 1

    def zeros(*shape: int) -> Tensor:
        return call.key.new_zeros(shape, dtype=dtype)

    return DeepMemoryState(
        weights=call.weights.to(dtype).expand(layout.state_shape),
        momentum=zeros(*layout.state_shape),
        pending=zeros(batch, heads, 1, 1, 1) if call.orthogonalise else zeros(*layout.state_shape),
        log_kept=zeros(batch, heads),
        window_key=zeros(batch, kept, heads, layout.key_width),
        window_value=zeros(batch, kept, heads, layout.value_width),
        window_rate=zeros(batch, kept, heads),
    )
