"""Memories that start afresh on the grid of absolute positions.

Letters: B batch rows, N tokens, S shards, L tokens of a shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import State, Tokens

Run = Callable[[Tensor, State, Tokens], tuple[tuple[Tensor, ...], dict[str, Any]]]
"""(x (B, n, D), state or None, tokens) → outputs (B, n, …) and the state after them."""


def by_shard(run: Run, x: Tensor, state: State, tokens: Tokens, shard: int) -> tuple[tuple[Tensor, ...], State]:
    """What ``run`` makes of x (B, N, D) where nothing but its parameters passes from one shard to the next.

    Whole shards are computed at once as rows of their own, so that no gradient can cross; what is left of a shard that
    an earlier call began continues from ``state``. Raises ValueError for ragged rows (``tokens.valid``), which would
    leave the common grid.
    """
    if tokens.valid is not None:
        raise ValueError(
            "shards lie on one grid of positions for all rows, which right-padded rows (tokens.valid) would leave; "
            "pass rows of equal length or a memory without shards"
        )
    if tokens.offset % shard == 0:
        state = None
    outputs = []
    for start, stop, whole in pieces(tokens.offset, x.shape[1], shard):
        part = tokens._replace(
            positions=tokens.positions[:, start:stop],
            offset=0,
            resets=None if tokens.resets is None else tokens.resets[:, start:stop],
        )
        if whole:
            part = part._replace(
                positions=folded(part.positions, shard),
                resets=None if part.resets is None else folded(part.resets, shard),
            )
            found, last = run(folded(x[:, start:stop], shard), None, part)
            found = tuple(side.unflatten(0, (-1, whole)).flatten(1, 2) for side in found)
            state = newest(last, whole)
        else:
            found, state = run(x[:, start:stop], state if start == 0 else None, part)
        outputs.append(found)
    return tuple(torch.cat(sides, dim=1) for sides in zip(*outputs, strict=True)), state


def pieces(offset: int, length: int, shard: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, number of whole shards or 0) of ``length`` tokens from stream position ``offset`` on."""
    head = min(-offset % shard, length)
    whole = (length - head) // shard
    tail = head + whole * shard
    if head:
        yield 0, head, 0
    if whole:
        yield head, tail, whole
    if tail < length:
        yield tail, length, 0


def folded(x: Tensor, shard: int) -> Tensor:
    """(B, S L, …) → (B S, L, …)."""
    return x.unflatten(1, (-1, shard)).flatten(0, 1)


def newest(state: Any, shards: int) -> Any:
    """Of a tree of tensors (B S, …) those of the last shard (B, …)."""
    if isinstance(state, Tensor):
        return state.unflatten(0, (-1, shards))[:, -1]
    return {name: newest(value, shards) for name, value in state.items()}
