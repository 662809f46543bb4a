"""How far open gates are, and how much they decide.

Shapes: B batch, N tokens, C gates of a layer.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def undecided(openness: Tensor) -> Tensor:
    """1 − |2g − 1|: 0 for a gate open or shut, 1 half open. Source: mathematics §9."""
    return 1 - (2 * openness - 1).abs()


def entropy(openness: Tensor) -> Tensor:
    """−g log₂ g − (1 − g) log₂(1 − g), in bits: 0 for a gate open or shut, 1 half open."""
    g = openness.clamp(0.0, 1.0)
    return -(torch.xlogy(g, g) + torch.xlogy(1 - g, 1 - g)) / math.log(2)
