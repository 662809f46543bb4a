"""Options of the ``stack`` model: the [model] table. Imports no torch."""

from __future__ import annotations

from typing import Literal

import attrs
from attrs import field, validators

from muse_core.component import UseLayer, UseRouter


@attrs.frozen(kw_only=True)
class Placed:
    """A residual layer of the block. Other keys of this table are the layer's options."""

    layer: UseLayer = field(metadata={"inline": True})
    """Which layer."""
    at: str | None = field(
        default=None,
        validator=validators.optional(
            validators.matches_re(r"-?\d{1,9}(,-?\d{1,9})*|(-?\d{1,9})?:(-?\d{1,9})?(:[1-9]\d{0,8})?")
        ),
    )
    """Depths that have it: an index, indices separated by commas, or a slice (``::4`` every fourth, ``1:`` all but the
    first). Default: every depth."""
    name: str | None = field(
        default=None, validator=validators.optional(validators.matches_re(r"[A-Za-z][A-Za-z0-9_-]{0,63}"))
    )
    """Name in parameters and metrics. Default: the component's name; needed where a block repeats a layer."""


@attrs.frozen(kw_only=True)
class Exit:
    """Tokens may leave before the last block (adaptive computation time, Graves 2016). Other keys of this table are the
    options of the router that decides after each block."""

    router: UseRouter = field(metadata={"inline": True})
    """A router with two destinations, the next block and the head; its weight for the head is the probability of
    halting."""
    after: int = field(default=1, validator=validators.ge(1))
    """Blocks that every token passes."""
    threshold: float = field(default=0.9, validator=[validators.gt(0.0), validators.le(1.0)])
    """A token leaves once its halting probabilities add up to this much."""
    ponder: float = field(default=0.01, validator=[validators.ge(0.0), validators.le(10.0)])
    """Nats per token that passing every block costs; a token expected to pass half of them costs half."""


@attrs.frozen(kw_only=True)
class StackOptions:
    """Embedding, ``depth`` blocks of residual layers y = x + update(norm(x)), norm, head."""

    width: int = field(default=192, validator=[validators.ge(1), validators.le(16_384)])
    """Width D of the residual stream."""
    depth: int = field(default=4, validator=[validators.ge(1), validators.le(1024)])
    """Number of blocks."""
    dropout: float = field(default=0.0, validator=[validators.ge(0.0), validators.lt(1.0)])
    """Share of each layer's update that is dropped in training."""
    block: tuple[Placed, ...] = field(validator=[validators.min_len(1), validators.max_len(64)])
    """The residual layers of a block, in order."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalisation before each layer and the head."""
    tie_embeddings: bool = True
    """The head is the embedding's transpose."""
    exit: Exit | None = None
    """Early exit. Default: every token passes every block."""


@attrs.frozen(kw_only=True)
class ScaledOptions:
    """The component's own initial values times a factor, so that a new part of a trained model starts quietly."""

    factor: float = field(default=0.1, validator=[validators.ge(0.0), validators.le(100.0)])
    """Factor. At 0 gradients still reach a parameter whose input and output are alive."""
