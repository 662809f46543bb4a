"""Options of windows, persistent memory, retrieval by projected queries, and the block. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from attrs import field, frozen, validators

from muse_core.component import Requirement, UseLayer, grids, horizon
from muse_core.options.heads import check_groups, indivisible

HEADS = [validators.ge(1), validators.le(1024)]


@frozen(kw_only=True)
class WindowOptions:
    """What every layer with a window of attention has."""

    heads: int = field(default=4, validator=HEADS)
    """Query heads H of the attention; they divide the width."""
    key_value_heads: int | None = field(default=None, validator=validators.optional(HEADS))
    """Heads of keys and values; each serves heads / key_value_heads queries. Default: as many as queries."""
    window: int = field(default=128, validator=[validators.ge(1), validators.le(1_048_576)])
    """A token sees itself and the window − 1 tokens before it, within its document."""
    persistent: int = field(default=16, validator=[validators.ge(0), validators.le(65_536)])
    """Learned tokens that every position sees besides: keys and values per head, without a position."""
    rotary: bool = True
    """Rotate queries and keys by their position in the document."""
    rotary_base: float = field(default=10_000.0, validator=validators.gt(1.0))
    """Wavelengths of the rotation run from 2π to about 2π × this, in tokens."""
    convolution: int = field(default=0, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution over queries, keys and values spans; 0 leaves it out."""
    query_key_norm: bool = True
    """Divide queries and keys of a head by their root mean square, times a learned gain, before they are rotated."""

    def __attrs_post_init__(self) -> None:
        check_groups(self.heads, self.key_value_heads)

    def problems(self, recipe: Any) -> Iterable[str]:
        length = recipe.train.sequence_length
        if self.window >= length:
            yield (
                f"window is {self.window} but sequences have {length} tokens, so nothing would be outside it - use a "
                f"window below train.sequence_length, or the layer attention"
            )
        yield from indivisible(recipe, self.heads, rotary=self.rotary)


@frozen(kw_only=True)
class SlidingWindowOptions(WindowOptions):
    """Softmax attention within a document over a sliding window and learned persistent tokens."""

    def horizon(self) -> float:
        """Tokens back that it reads."""
        return self.window


@frozen(kw_only=True)
class PersistentMemoryOptions:
    """Softmax attention of every token by itself to learned keys and values: what the model knows before it reads."""

    heads: int = field(default=4, validator=HEADS)
    """Heads H; they divide the width."""
    persistent: int = field(default=16, validator=[validators.ge(1), validators.le(65_536)])
    """Learned keys and values of a head."""

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible(recipe, self.heads)


@frozen(kw_only=True)
class QueryProjectionOptions:
    """Fast weights of the delta rule, read by queries that are projected on the keys seen so far in the shard and on
    learned persistent ones: q' = M q / n with M = Σ k kᵀ and n = Σ ‖k‖²."""

    heads: int = field(default=4, validator=HEADS)
    """Number of separate memories H; they divide the width."""
    persistent: int = field(default=16, validator=[validators.ge(0), validators.le(65_536)])
    """Learned keys and values of a head, which every shard starts from."""
    shard: int = field(default=2048, validator=[validators.ge(2), validators.le(1_048_576)])
    """Tokens after which memory, M and n start afresh from the persistent ones, on the grid of absolute positions; no
    gradient crosses."""
    norm_persistent: bool = True
    """Count the persistent keys in n as in M. False leaves them out of n alone, an ablation."""
    initial_decay: tuple[float, float] = (0.0005, 0.1)
    """Γ per token of the slowest and the fastest head at the start; those between are log-spaced."""
    convolution: int = field(default=4, validator=[validators.ge(0), validators.le(64)])
    """Tokens that a short causal convolution over queries, keys and values spans; 0 leaves it out."""

    def __attrs_post_init__(self) -> None:
        slow, fast = self.initial_decay
        if not 0.0 < slow <= fast <= 10.0:
            raise ValueError(f"initial_decay must be two rates with 0 < slowest ≤ fastest ≤ 10, got {[slow, fast]}")

    output: Literal["stream", "signal"] = "stream"
    """stream: add what is read to the residual stream. signal: only publish it, for a later `mag` whose memory is
    `earlier-memory`."""

    @property
    def adds_nothing(self) -> bool:
        """Whether all that it returns is the signal."""
        return self.output == "signal"

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        """``memory``: what is read, normalised and mixed, of the stream's width."""
        return {"memory": (width,)}

    def grid(self) -> tuple[int, ...]:
        """Shards begin at multiples of their length."""
        return (self.shard,)

    def horizon(self) -> float:
        """Tokens back that it remembers: a shard, or as far as its slowest head at the start."""
        return min(self.shard, 1 / self.initial_decay[0])

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from indivisible(recipe, self.heads)
        chunk = recipe.kernels.chunk
        if self.shard % chunk:
            yield (
                f"shard is {self.shard}, no multiple of kernels.chunk = {chunk}, so that shards would end inside what "
                f"kernels compute together - use a multiple or another kernels.chunk"
            )


@frozen(kw_only=True)
class EarlierMemoryOptions:
    """What a memory at an earlier depth or place has read, its signal ``memory``, so that several blocks share one."""

    ignores_stream: ClassVar[bool] = True

    def requires(self) -> tuple[Requirement, ...]:
        """``memory``: a memory's answer, of the stream's width."""
        return (Requirement("memory"),)


@frozen(kw_only=True)
class MagOptions(WindowOptions):
    """Window attention ⊙ σ(memory): what a memory layer answers decides, feature by feature, how much of what attention
    found is passed on; each side normalised."""

    memory: UseLayer = field(default="qk-projection")
    """A memory layer with a horizon beyond the window; a table with ``use`` sets its options."""
    mixing: Literal["gate", "additive", "query-blend"] = "gate"
    """gate: norm(attention) ⊙ σ(norm(memory)). additive: norm(attention) + norm(memory). query-blend: queries of the
    attention are (1 − g) q + g m, with m the memory's normalised answer and a learned g per token and head."""

    def provides(self, width: int) -> dict[str, tuple[int, ...]]:
        """``gate``: how far open it is, per feature, or per head where queries are blended."""
        sizes = {"gate": width, "query-blend": self.heads}
        return {"gate": (sizes[self.mixing],)} if self.mixing in sizes else {}

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from super().problems(recipe)
        memory = self.memory
        reach = horizon(memory.options)
        if memory.kind != "memory layer" and reach is None:
            yield (
                f"memory = {memory.name!r} is no memory layer: it holds nothing from beyond the window to answer with "
                f"- name a memory layer, such as qk-projection or fast-weights"
            )
        elif getattr(memory.options, "adds_nothing", False):
            yield (
                f'the memory {memory.name!r} answers by its signal alone, which nothing reads inside a block - leave '
                f'its output at "stream"'
            )
        elif reach is not None and reach <= self.window:
            yield (
                f"the memory {memory.name!r} reaches {reach:,.0f} tokens back, not beyond the window of {self.window}, "
                f"so that attention sees all that it holds - lengthen the memory or shorten the window"
            )
        period, chunk = getattr(memory.options, "period", None), recipe.kernels.chunk
        if isinstance(period, int) and period in grids(memory.options) and period % chunk and chunk % period:
            yield (
                f"the memory's period is {period}, which kernels.chunk = {chunk} does not divide - use a multiple of "
                f"it or another kernels.chunk"
            )
