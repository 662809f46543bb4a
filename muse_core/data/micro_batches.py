"""Moving and slicing batches."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from muse_core.contracts import Batch, Tokens


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of a batch."""
    tokens = batch.tokens
    return Batch(
        batch.inputs[start:stop],
        batch.labels[start:stop],
        batch.loss_mask[start:stop],
        Tokens(
            tokens.positions[start:stop],
            tokens.offset,
            None if tokens.resets is None else tokens.resets[start:stop],
            None if tokens.valid is None else tokens.valid[start:stop],
        ),
        {name: value[start:stop] for name, value in batch.extra.items()},
    )


def micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch in pieces of at most ``size`` rows; one piece when None."""
    total = batch.inputs.shape[0]
    for start in range(0, total, size or total):
        yield rows(batch, start, min(start + (size or total), total))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``; from pinned memory without waiting."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda":
            # An expanded tensor cannot be pinned.
            return tensor.contiguous().pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    tokens = batch.tokens
    return Batch(
        move(batch.inputs),
        move(batch.labels),
        move(batch.loss_mask),
        Tokens(
            move(tokens.positions),
            tokens.offset,
            None if tokens.resets is None else move(tokens.resets),
            None if tokens.valid is None else move(tokens.valid),
        ),
        {name: move(value) for name, value in batch.extra.items()},
    )
