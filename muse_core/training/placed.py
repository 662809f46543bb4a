"""A step's batch where the step reads it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from muse_core.contracts import Batch
from muse_core.data.batches import micro_batches, to_device
from muse_core.training.forward import Forward


class Placed(NamedTuple):
    """What the passes of a step are given, and what is counted of its batch on the host."""

    batch: Batch
    """The whole batch as it was made, on the host."""
    pieces: list[Batch]
    """This process's micro-batches, on the device."""
    whole: Tensor
    """What their sums are divided by: a float64 scalar on the device."""
    read_bytes: float
    """UTF-8 bytes of all labels of the batch that count."""


def place(
    batch: Batch, forward: Forward, device: torch.device, *, micro_batch: int | None, period: int | None,
    byte_lengths: np.ndarray,
) -> Placed:
    """This process's part of a batch on ``device``, without waiting for it.

    ``period``: the offset of a batch of streams is given modulo this; None where windows are read with fresh state.
    ``byte_lengths``: by label. Raises RecipeError or DataError for a batch that cannot be divided among processes.
    """
    # Of the whole batch, on the host: numpy, so that it is no read of a tensor.
    mask = batch.loss_mask.numpy()
    whole = torch.full((), max(int(mask.sum()), 1) / forward.parts, dtype=torch.float64, device=device)
    on_host = list(micro_batches(forward.own_rows(batch), micro_batch))
    room, pieces = forward.target_room(batch, on_host, micro_batch), []
    for piece in on_host:
        there = to_device(piece, device, room)
        if period is not None:
            there = there._replace(tokens=there.tokens._replace(offset=piece.tokens.offset % period))
        pieces.append(there)
    return Placed(batch, pieces, whole, float(byte_lengths[batch.labels.numpy()][mask].sum()))
