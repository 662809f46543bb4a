"""Options of the deep memory. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from attrs import field, frozen, validators

from muse_mag.options import HEADS, indivisible

MOST_BYTES = 4 * 2**30
"""Weights and momentum of one sequence in one layer, at most."""


@frozen(kw_only=True)
class AtlasOptions:
    """Deep memory: every head a small network f(x) = x + W₁(SiLU(W₂x) ⊙ W₃x) that learns, while the text is read, to
    answer keys by values. It is trained a chunk at a time and read by the chunks that follow."""

    heads: int = field(default=4, validator=HEADS)
    """Number of separate memories H."""
    key_size: int | None = field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(4096)])
    )
    """Width of a head's keys and queries before ``degree`` widens them. Default: the model's width over heads."""
    hidden_size: int | None = field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(16_384)])
    )
    """Hidden width E of a head's network. Default: twice the width of what it reads."""
    memory: str = field(default="gated", validator=validators.in_(("gated", "linear")))
    """gated: the network. linear: one matrix, f(x) = W x."""
    chunk: int = field(default=16, validator=[validators.ge(1), validators.le(1_048_576)])
    """Tokens that train the memory together, at the weights their chunk starts from: 8, 16, 32, or 64, which is fastest
    on a GPU and for use beside a window of 64 tokens or more."""
    window: int = field(default=1, validator=[validators.ge(1), validators.le(4096)])
    """Tokens of the Omega rule: each token descends the loss of this many last ones. 1 is the rule of Titans."""
    momentum: bool = True
    """Learn a momentum per token and head; without it the descent has none."""
    orthogonalise: bool = False
    """Orthogonalise a chunk's update by five Newton–Schulz steps, as Atlas does; without it the rule is that of Titans.
    The weights stay bounded, but not the gradients through them: orthogonalised steps do not shrink where the loss is
    least, and their gradient grows from chunk to chunk, by 10²⁰ and more over 8,192 tokens in chunks of 4. For short
    sequences, or with ``initial_step`` of 0.003 and less."""
    degree: int = field(default=1, validator=[validators.ge(1), validators.le(3)])
    """Degree of the polynomial features of keys and queries: all products of up to this many entries."""
    levels: int = field(default=1, validator=[validators.ge(1), validators.le(2)])
    """1: one memory. 2: beside it a second one that is trained every ``global_chunk`` tokens and never reset within a
    document, while the first starts afresh at every shard; what both answer is added."""
    global_chunk: int | None = field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(1_048_576)])
    )
    """Tokens that train the second of two levels together. Default: 2,048."""
    shard: int | None = field(
        default=None, validator=validators.optional([validators.ge(1), validators.le(1_048_576)])
    )
    """Tokens after which the first of two levels starts afresh, on the grid of positions; no gradient crosses.
    Default: 2,048."""
    initial_momentum: float = field(default=0.9, validator=[validators.gt(0.0), validators.lt(1.0)])
    """Momentum that a chunk leaves of the one before, at the start."""
    initial_decay: tuple[float, float] = (0.0005, 0.05)
    """Γ per token of the slowest and the fastest head at the start; those between are log-spaced."""
    initial_step: float = field(default=0.1, validator=[validators.gt(0.0), validators.lt(1.0)])
    """Rates of a chunk's tokens added up, at the start; learned rates add up to 1 at most, of a gated memory that is
    not orthogonalised to 1/3, beyond which keys that are alike make it diverge."""
    convolution: int = field(default=4, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution over queries, keys and values spans; 0 leaves it out."""
    gate: bool = True
    """Multiply what is read by a gate of the token."""
    recompute: int = field(default=1, validator=[validators.ge(1), validators.le(4096)])
    """Chunks of which one state is kept for the backward pass; the others are computed again."""

    def __attrs_post_init__(self) -> None:
        slow, fast = self.initial_decay
        if not 0.0 < slow <= fast <= 10.0:
            raise ValueError(f"initial_decay must be two rates with 0 < slowest ≤ fastest ≤ 10, got {[slow, fast]}")
        if self.initial_step >= self.largest_step:
            raise ValueError(
                f"initial_step = {self.initial_step:g} is not below {self.largest_step:.3g}, which the rates of a "
                f"gated memory without orthogonalise may add up to: larger steps diverge; choose a smaller one"
            )
        for name in ("shard", "global_chunk") if self.levels == 1 else ():
            if (value := getattr(self, name)) is not None:
                raise ValueError(
                    f"{name} = {value} with levels = 1: a single level is reset at documents alone and trained every "
                    f"chunk, so that nothing would follow it; choose levels = 2 or leave {name} out"
                )
        if self.levels == 2:
            self.check_levels(self.chunk, self.global_length, self.shard_length)

    @staticmethod
    def check_levels(chunk: int, longer: int, shard: int) -> None:
        """Raises ValueError for two levels whose numbers contradict each other."""
        if longer % chunk:
            raise ValueError(
                f"chunk = {chunk} does not divide global_chunk = {longer}: the two levels would be trained at "
                f"unrelated tokens; choose a divisor"
            )
        if shard % chunk:
            raise ValueError(
                f"shard = {shard} is no multiple of chunk = {chunk}: every shard would end inside a chunk, whose "
                f"tokens would never be learned; choose a multiple"
            )
        if shard == chunk:
            raise ValueError(
                f"shard = {shard} is one chunk: the first level would be reset before anything that it learned is "
                f"read; choose a shard of two chunks or more"
            )

    @property
    def global_length(self) -> int:
        """Tokens that train the second of two levels together."""
        return self.global_chunk or 2048

    @property
    def shard_length(self) -> int:
        """Tokens after which the first of two levels starts afresh."""
        return self.shard or 2048

    @property
    def largest_step(self) -> float:
        """Most that the rates of a chunk's tokens add up to. Descent on equal keys needs less than 2 over the loss's
        curvature, which is 1 of a linear memory and at the start rarely more than 6 of a gated one."""
        return 1 / 3 if self.memory == "gated" and not self.orthogonalise else 1.0

    @property
    def goes_on_over_shards(self) -> bool:
        """Whether the second of two levels carries gradients from one shard to the next."""
        return self.levels == 2

    def grid(self) -> tuple[int, ...]:
        """Chunks, and shards of two levels, begin at multiples of their lengths."""
        return (self.chunk,) if self.levels == 1 else (self.chunk, self.global_length, self.shard_length)

    def horizon(self) -> float:
        """Tokens back that it remembers: as far as its slowest head at the start."""
        return 1 / self.initial_decay[0]

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        """``gate``: σ of the gate's pre-activation, how far open it is."""
        return {"gate": (self.heads * self.value_width(width),)} if self.gate else {}

    def problems(self, recipe: Any) -> Iterable[str]:
        length = recipe.train.sequence_length
        longest = self.chunk if self.levels == 1 else max(self.chunk, self.global_length)
        if longest >= length:
            name = "chunk" if longest == self.chunk else "global_chunk"
            yield (
                f"{name} is {longest} but sequences have {length} tokens, so that nothing trained by it would be read "
                f"- use a {name} below train.sequence_length"
            )
        if self.levels == 2 and self.shard_length >= length:
            yield (
                f"shard is {self.shard_length} but sequences have {length} tokens, so that the first level would never "
                f"start afresh - use a shard below train.sequence_length or levels = 1"
            )
        width = getattr(recipe.model.options, "width", None)
        if width is None:
            return
        if self.key_size is None and width % self.heads:
            yield from indivisible(recipe, self.heads)
            return
        matrices = 3 if self.memory == "gated" else 1
        held = 4 * 3 * self.levels * self.heads * matrices * self.key_width(width) * self.hidden_width(width)
        if held > MOST_BYTES:
            yield (
                f"the memories of {self.heads} heads would take {held / 2**30:,.1f} GiB for every sequence - lower "
                f"heads, key_size, hidden_size or degree"
            )

    def key_width(self, width: int) -> int:
        """K: numbers that a head's memory reads, for a model of this width."""
        base = self.key_size or width // self.heads
        return math.comb(base + self.degree, self.degree) - 1

    def value_width(self, width: int) -> int:
        """Numbers that a head answers with: as many as it reads, of a linear memory the model's width over heads."""
        return self.key_width(width) if self.memory == "gated" else self.hidden_width(width)

    def hidden_width(self, width: int) -> int:
        """E for a model of this width; of a linear memory the width of its values."""
        if self.memory == "linear":
            return self.hidden_size or width // self.heads
        return self.hidden_size or 2 * self.key_width(width)
