"""The core's own initializer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_core.model.options import ScaledOptions


class Scaled:
    """Initializer ``scaled``."""

    def __init__(self, options: ScaledOptions, context: Any):
        self.factor = options.factor

    def __call__(self, tensor: Tensor, *, role: str, generator: torch.Generator) -> Tensor:
        return self.factor * tensor
