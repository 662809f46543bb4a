"""What `decayed_scores` is given, checked, and what it returns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import checks_values
from .chunks import in_chunks

LONGEST = 64
"""Tokens of a chunk at most."""


class DecayedScores(NamedTuple):
    """What chunks of C tokens of a memory with a decay per channel need before any state.

    Shapes: B batch, H heads, n chunks, K key width; all in the dtype of the computation. Tokens behind the last one, up
    to a whole chunk, neither decay nor write.
    """

    query_key: Tensor
    """(B, H, n, C, C): sum over k of q_i e^{decay over j+1 … i} k_j, j <= i."""
    query_from_start: Tensor
    """(B, H, n, C, K): each query times the decay from the chunk's start up to its own token's."""
    key_to_end: Tensor
    """(B, H, n, K, C): each key times the decays behind its token in the chunk, tokens last."""
    last: Tensor
    """(B, H, n, K): the decay over the chunk."""
    query_insert: Tensor | None = None
    """As `query_key`, of the inserts; this and what follows is None without probe and insert."""
    probe_key: Tensor | None = None
    """(B, H, n, C, C): sum over k of p_i e^{decay over j+1 … i-1} k_j, j < i."""
    probe_insert: Tensor | None = None
    """As `probe_key`, of the inserts."""
    probe_from_start: Tensor | None = None
    """(B, H, n, C, K): each probe times the decay from the chunk's start up to the token before its own."""
    insert_to_end: Tensor | None = None
    """(B, H, n, K, C), as `key_to_end`."""


class Checked(NamedTuple):
    """The arguments of a call as they came, and in place of its resets the documents of each chunk."""

    query: Tensor
    key: Tensor
    log_decay: Tensor
    probe: Tensor | None
    insert: Tensor | None
    document: Tensor | None
    """(B, n, C) int32: the number of each token's document, counted from the one that runs on when the chunk starts."""


def check_decayed_scores(
    query: Tensor, key: Tensor, log_decay: Tensor, probe: Tensor | None, insert: Tensor | None,
    resets: Tensor | None, chunk: int,
) -> Checked:  # fmt: skip
    """ValueError naming the argument and the shapes where they do not fit. Tensors keep their dtypes. Under
    `muse_kernels.debug` the values are checked too."""
    operation = "decayed_scores"
    if query.ndim != 4 or min(query.shape[1], query.shape[3]) < 1 or not query.is_floating_point():
        raise ValueError(
            f"{operation}: query must be floating (B, N, H, K) with N >= 1 and K >= 1, "
            f"got {query.dtype} {tuple(query.shape)}"
        )
    if (probe is None) != (insert is None):
        raise ValueError(f"{operation}: probe and insert are given together or not at all")
    named = {"key": key, "log_decay": log_decay, "probe": probe, "insert": insert}
    for name, x in named.items():
        if x is not None and (x.shape != query.shape or not x.is_floating_point() or x.device != query.device):
            raise ValueError(
                f"{operation}: {name} must be floating {tuple(query.shape)} on {query.device} as query is, "
                f"got {x.dtype} {tuple(x.shape)} on {x.device}"
            )
    fits = resets is None or (resets.shape == query.shape[:2] and resets.dtype == torch.bool)
    if not fits or (resets is not None and resets.device != query.device):
        raise ValueError(
            f"{operation}: resets must be bool {tuple(query.shape[:2])} on {query.device} as query is, "
            f"got {resets.dtype} {tuple(resets.shape)} on {resets.device}"
        )
    if not 1 <= chunk <= LONGEST or chunk & (chunk - 1):
        raise ValueError(f"{operation}: chunk must be a power of two up to {LONGEST}, got {chunk}")
    if checks_values():
        _check_values(query=query, **named)
    document = None
    if resets is not None:
        document = in_chunks(resets[..., None], chunk)[:, 0].cumsum(-1, dtype=torch.int32)
    return Checked(query, key, log_decay, probe, insert, document)


def _check_values(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.isfinite().all():
            raise ValueError(f"decayed_scores: {name} holds values that are not finite")
    largest = tensors["log_decay"].amax().item() if tensors["log_decay"].numel() else 0.0
    if largest > 0:
        raise ValueError(f"decayed_scores: log_decay must be <= 0, its largest is {largest:g}")


def computed_in(*tensors: Tensor | None) -> torch.dtype:
    """float64 where any tensor is of double precision, otherwise float32."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32
