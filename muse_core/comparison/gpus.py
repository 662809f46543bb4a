"""Whether the GPUs that a comparison deals its runs over are there."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

from muse_core.errors import RecipeError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def require_gpus(gpus: Sequence[str]) -> None:
    """Raises RecipeError for a GPU that a run would not find: with ``train.device = "auto"`` it would train on the
    CPU without a word. Each is asked for as the run sees it, alone; what this process may see is not the run's."""
    for gpu in gpus:
        if not _seen(gpu):
            every = _seen(None)
            there = f"torch sees {every} GPU{'s' * (every != 1)}" if every else "torch sees no GPU"
            raise RecipeError(
                f"--gpus {','.join(gpus)}: GPU {gpu} is not there: {there} here - name others, or leave --gpus out"
            )


def _seen(gpu: str | None) -> int:
    """GPUs that torch sees where this one alone is visible; None for all of the host."""
    before = os.environ.pop(VISIBLE, None)
    try:
        if gpu is not None:
            os.environ[VISIBLE] = gpu
        return torch.cuda.device_count()
    finally:
        os.environ.pop(VISIBLE, None)
        if before is not None:
            os.environ[VISIBLE] = before
