"""Next-token cross-entropy, in pieces where the vocabulary is large. Training and evaluation share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from muse_core.contracts import Batch
from muse_core.data.batches import targets_per_token

IGNORED = -100
SCORES_AT_ONCE = 1 << 25
"""Scores (tokens × vocabulary) held at once: 128 MiB in fp32, where the whole of 4,096 tokens × 50,257 is 0.8 GB. As
many as 65,536 bytes have, so that these are not computed twice."""


def cross_entropy(model: Any, hidden: Tensor, batch: Batch, *, per_token: bool = False) -> Tensor:
    """Next-token cross-entropy in nats: the sum over counted tokens, or (B, N) with zero where not counted.

    Scores are computed and, in training, recomputed in pieces, so that a large vocabulary does not fill the memory.
    """
    flat, labels = _scored_places(hidden, batch)

    def piece(hidden: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(_scores(model, hidden), labels, ignore_index=IGNORED, reduction="none")

    rows = _rows_at_once(model)
    if len(flat) <= rows:
        losses = piece(flat, labels)
    else:
        losses = torch.cat(
            [
                # Nothing random to keep the state of, which would wait for the device.
                checkpoint(piece, h, y, use_reentrant=False, preserve_rng_state=False)
                if torch.is_grad_enabled()
                else piece(h, y)
                for h, y in zip(flat.split(rows), labels.split(rows))
            ]
        )
    return _over_all(losses, batch) if per_token else losses.sum()


@torch.no_grad()
def scored(model: Any, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Cross-entropy in nats and whether the label has the highest score, each (B, N), zero where not counted."""
    flat, labels = _scored_places(hidden, batch)
    rows = _rows_at_once(model)
    losses, correct = [], []
    for some, wanted in zip(flat.split(rows), labels.split(rows)):
        scores = _scores(model, some)
        losses.append(F.cross_entropy(scores, wanted, ignore_index=IGNORED, reduction="none"))
        correct.append(scores.argmax(-1) == wanted)
    return _over_all(torch.cat(losses), batch), _over_all(torch.cat(correct), batch)


def _scores(model: Any, hidden: Tensor) -> Tensor:
    """hidden (n, …) → (n, V), in fp32 at least."""
    scores: Tensor = model.logits(hidden)
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def per_counted(losses: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """The layers' own losses, sums over valid tokens, as sums over counted tokens of their mean per valid token.

    The loop divides everything by the counted targets; scaled by targets / valid tokens of the whole batch, a weight a
    token means the same whatever part of the labels counts. Where all valid tokens count, nothing changes.
    """
    share = targets_per_token(batch)
    if not isinstance(share, Tensor):
        return {name: value * share for name, value in losses.items()}
    return {name: value * like(value, share) for name, value in losses.items()}


def like(value: Tensor, number: Tensor) -> Tensor:
    """A number of float64 in the precision of a value that it scales, fp32 at least."""
    return number.to(torch.promote_types(value.dtype, torch.float32))


def _scored_places(hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Hidden vectors (n, …) and labels (n,) int64 of what is scored: the places that the batch names, else all of B·N,
    with IGNORED where the label does not count."""
    flat, labels = hidden.flatten(0, 1), batch.labels.masked_fill(~batch.loss_mask, IGNORED).flatten()
    if batch.target_places is None:
        return flat, labels
    return flat.index_select(0, batch.target_places), labels.index_select(0, batch.target_places)


def _over_all(values: Tensor, batch: Batch) -> Tensor:
    """(B, N): what was found at the scored places, zero elsewhere."""
    if batch.target_places is None:
        return values.view_as(batch.labels)
    return values.new_zeros(batch.labels.numel()).index_copy(0, batch.target_places, values).view_as(batch.labels)


def _rows_at_once(model: Any) -> int:
    return max(1, SCORES_AT_ONCE // model.vocabulary_size)
