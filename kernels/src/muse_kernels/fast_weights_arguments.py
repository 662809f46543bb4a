"""What every backend of `fast_weights` checks and derives from its arguments before computing."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

RULES = ("hebbian", "delta")
READS = ("after", "before")
DTYPES = (torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Layout:
    """Sizes and dtypes of one call: B batch, N tokens, H heads, K key width, M value width."""

    batch: int
    tokens: int
    heads: int
    key_width: int
    value_width: int
    output_dtype: torch.dtype
    """Of the output: the promotion of query, key and value."""
    state_dtype: torch.dtype
    """Of the arithmetic and the carried state: float64 where any input is, else float32."""

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """(B, H, K, M)."""
        return (self.batch, self.heads, self.key_width, self.value_width)


class Call(NamedTuple):
    """The arguments of one call; `muse_kernels.fast_weights` says what they are."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    rate: Tensor
    rule: str
    initial: Tensor | None
    resets: Tensor | None
    read: str
    chunk: int


def checked(compute: Callable[[Call, Layout], tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A backend's `fast_weights`: `compute` behind the one signature and the one check that all backends have.

    The result has the name and the docstring of `compute`.
    """

    def fast_weights(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        log_decay: Tensor,
        rate: Tensor,
        *,
        rule: str = "hebbian",
        initial: Tensor | None = None,
        resets: Tensor | None = None,
        read: str = "after",
        chunk: int = 64,
        group=None,
    ) -> tuple[Tensor, Tensor]:
        call = Call(query, key, value, log_decay, rate, rule, initial, resets, read, chunk)
        return compute(call, check_fast_weights(call, group))

    fast_weights.__name__, fast_weights.__qualname__ = compute.__name__, compute.__qualname__
    fast_weights.__module__, fast_weights.__doc__ = compute.__module__, compute.__doc__
    return fast_weights


def check_fast_weights(call: Call, group=None) -> Layout:
    """The layout of a call; ValueError naming the argument and the shapes where they do not fit."""
    query, key, value, log_decay, rate, rule, initial, resets, read, chunk = call
    if group is not None:
        raise NotImplementedError("fast_weights: context parallelism (group) is not built yet; pass group=None")
    if rule not in RULES:
        raise ValueError(f"fast_weights: rule must be one of {RULES}, got {rule!r}")
    if read not in READS:
        raise ValueError(f"fast_weights: read must be one of {READS}, got {read!r}")
    if chunk < 1:
        raise ValueError(f"fast_weights: chunk must be at least 1, got {chunk}")
    if query.ndim != 4:
        raise ValueError(f"fast_weights: query must be (B, N, H, K), got {tuple(query.shape)}")
    batch, tokens, heads, key_width = query.shape
    if tokens < 1:
        raise ValueError(f"fast_weights: query needs at least one token, got {tuple(query.shape)}")
    if value.ndim != 4:
        raise ValueError(f"fast_weights: value must be (B, N, H, M), got {tuple(value.shape)}")
    value_width = value.shape[-1]

    expected = {
        "key": (key, "(B, N, H, K)", (batch, tokens, heads, key_width)),
        "value": (value, "(B, N, H, M)", (batch, tokens, heads, value_width)),
        "log_decay": (log_decay, "(B, N, H)", (batch, tokens, heads)),
        "rate": (rate, "(B, N, H)", (batch, tokens, heads)),
        "initial": (initial, "(B, H, K, M)", (batch, heads, key_width, value_width)),
        "resets": (resets, "(B, N)", (batch, tokens)),
    }
    for name, (tensor, letters, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"fast_weights: {name} must be {letters} = {shape} beside query {tuple(query.shape)}, "
                f"got {tuple(tensor.shape)}"
            )
        if tensor.device != query.device:
            raise ValueError(f"fast_weights: {name} is on {tensor.device}, query on {query.device}")

    if resets is not None and resets.dtype != torch.bool:
        raise ValueError(f"fast_weights: resets must be bool, got {resets.dtype}")
    floats = {"query": query, "key": key, "value": value, "log_decay": log_decay, "rate": rate, "initial": initial}
    dtypes = {name: tensor.dtype for name, tensor in floats.items() if tensor is not None}
    for name, dtype in dtypes.items():
        if dtype not in DTYPES:
            raise ValueError(f"fast_weights: {name} must be bfloat16, float32 or float64, got {dtype}")
    return Layout(
        batch,
        tokens,
        heads,
        key_width,
        value_width,
        output_dtype=reduce(torch.promote_types, (query.dtype, key.dtype, value.dtype)),
        state_dtype=reduce(torch.promote_types, dtypes.values(), torch.float32),
    )
