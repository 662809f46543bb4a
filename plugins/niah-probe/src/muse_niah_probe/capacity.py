"""Capacity of linear memory: how well a pair is recalled from under n others.

Shapes: T trials, n pairs written later, d key and value width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Capacity(NamedTuple):
    """A measurement beside its theory."""

    measured: float
    """Mean cosine between the value recalled and the value written."""
    expected: float
    """1 / √(1 + n/d)."""


def expected_cosine(buried: int, width: int) -> float:
    """1 / √(1 + n/d): the other values add noise of n/d times the signal's power. Source: mathematics §9."""
    return 1 / math.sqrt(1 + buried / width)


@torch.no_grad()
def capacity(
    fast_weights: Callable[..., tuple[Tensor, Tensor]],
    *,
    width: int,
    buried: int,
    trials: int,
    generator: torch.Generator,
    device: torch.device,
    dtype: torch.dtype,
) -> Capacity:
    """Write v kᵀ, then ``buried`` random pairs with unit keys, without decay; read with k. ``generator`` on the CPU."""
    shape = (trials, buried + 1, 1, width)
    key = F.normalize(torch.randn(shape, generator=generator), dim=-1).to(device, dtype)
    value = torch.randn(shape, generator=generator).to(device, dtype)
    query = torch.zeros_like(key)
    query[:, -1] = key[:, 0]
    flat = key.new_zeros(shape[:3])
    output, _ = fast_weights(query, key, value, flat, torch.ones_like(flat), rule="hebbian")
    cosine = F.cosine_similarity(output[:, -1].double(), value[:, 0].double(), dim=-1)
    return Capacity(cosine.mean().item(), expected_cosine(buried, width))
