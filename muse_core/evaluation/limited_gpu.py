"""What is added to a fault in a model's values where the environment limits what of the GPU a process may use."""

from __future__ import annotations

import os

import torch

SHARE = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"


def limited_gpu(device: torch.device) -> str:
    """A sentence with a space before it, or nothing where the limit of CUDA's multi-process service is not set.

    With 20 % of an H200 (torch 2.11.0+cu130), beside two runs without a limit, the gate refused 40 runs of 40, for
    feed-forward and attention layers too; 37 of the same 40 passed it without the limit, and three ran out of memory
    (docs/guide/how-to/compare.md).
    """
    share = os.environ.get(SHARE)
    if device.type != "cuda" or share is None:
        return ""
    return (
        f" {SHARE} is {share} here: with it an H200 gave such values for layers that are right - unset it and try again"
    )
