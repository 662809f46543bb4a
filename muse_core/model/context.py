"""What a component learns about its surroundings when it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch

from muse_core.component import Use
from muse_core.model.kernels import BoundKernels


@attrs.frozen(kw_only=True)
class Context:
    """Given to ``Implementation(options, context)``. Fields that do not apply to a kind are None."""

    width: int
    """Width D of the residual stream."""
    depth: int
    """Number of blocks of the model."""
    block: int
    """Index of the block that this component stands in, from 0."""
    name: str
    """Full name, as ``blocks.3.fast-weights``; parameters and metrics carry it."""
    sequence_length: int
    """Training length in tokens; longer inputs may follow at evaluation."""
    generator: torch.Generator
    """CPU generator seeded by (seed, name); use it for every random initial value."""
    kernels: BoundKernels
    """``kernels.bind(operation, sizes=…, needs=…)`` gives the chosen implementation."""
    construct: Callable[[Use, Context], Any]
    """Builds a component; use ``build`` instead."""
    signals: Mapping[str, tuple[int, ...]] = {}
    """Signals that earlier layers publish: name → trailing shape after (B, N)."""
    publish: frozenset[str] = frozenset()
    """Signals that this layer must return in every Step; a subset of its options' ``provides``."""
    heads: int | None = None
    """For potentials: the number of heads H of the resolvent."""
    experts: int | None = None
    """For routers: the number of experts E."""
    period: int | None = None
    """For filters: tokens between two applications."""
    key_width: int | None = None
    """For filters: K of the weights (B, H, K, M) that they will act on."""

    def build(self, use: Use, **changes: Any) -> Any:
        """Build a nested component in this context with some fields changed. ``name`` should be the host's with the
        path of the nested module: initial values come from it. The generator is another than the host's."""
        return self.construct(use, attrs.evolve(self, **changes) if changes else self)
