"""Inputs of the suites, pieces of them, and the equalities of the contracts.

Letters: B batch rows, N tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from muse_core.contracts import State, Tokens
from muse_core.model import states

EXACT = 1e-10
"""Largest difference, relative to the largest magnitude, between two orders of the same float64 computation."""

ROWS_AND_TOKENS = ("row", "token")
"""The leading axes of what a layer computes."""

NARROWER = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""The same in the precisions of layers that have no float64 form."""


@attrs.frozen(kw_only=True)
class Sequence:
    """What a layer reads: x (B, N, D), signals (B, N, …) and tokens."""

    x: Tensor
    signals: dict[str, Tensor]
    tokens: Tokens

    @property
    def length(self) -> int:
        return self.x.shape[1]

    def piece(self, start: int, stop: int, *, period: int | None = None) -> Sequence:
        """Tokens ``start`` to ``stop`` as a stream would hand them over."""
        return Sequence(
            x=self.x[:, start:stop],
            signals={name: value[:, start:stop] for name, value in self.signals.items()},
            tokens=piece_of_tokens(self.tokens, start, stop, period=period),
        )

    def rows(self, chosen: Any) -> Sequence:
        """Some rows of the batch, or a permutation of them."""
        tokens = self.tokens
        return Sequence(
            x=self.x[chosen],
            signals={name: value[chosen] for name, value in self.signals.items()},
            tokens=Tokens(
                tokens.positions[chosen],
                tokens.offset,
                None if tokens.resets is None else tokens.resets[chosen],
                None if tokens.valid is None else tokens.valid[chosen],
            ),
        )

    def to(self, dtype: torch.dtype) -> Sequence:
        """The same with x and signals in another dtype."""
        signals = {name: value.to(dtype) for name, value in self.signals.items()}
        return attrs.evolve(self, x=self.x.to(dtype), signals=signals)

    def on(self, device: str) -> Sequence:
        """The same on another device."""
        signals = {name: value.to(device) for name, value in self.signals.items()}
        return attrs.evolve(self, x=self.x.to(device), signals=signals, tokens=tokens_on(self.tokens, device))


def tokens_on(tokens: Tokens, device: str) -> Tokens:
    """The same on another device."""
    return tokens._replace(
        positions=tokens.positions.to(device),
        resets=None if tokens.resets is None else tokens.resets.to(device),
        valid=None if tokens.valid is None else tokens.valid.to(device),
    )


def piece_of_tokens(tokens: Tokens, start: int, stop: int, *, period: int | None = None) -> Tokens:
    """The tokens of a piece; ``offset`` counts modulo ``period``."""
    offset = tokens.offset + start
    return Tokens(
        tokens.positions[:, start:stop],
        offset % period if period else 0,
        None if tokens.resets is None else tokens.resets[:, start:stop],
        None if tokens.valid is None else tokens.valid[:, start:stop],
    )


def random_sequence(
    *,
    batch: int,
    length: int,
    width: int,
    signals: Mapping[str, tuple[int, ...]] | None = None,
    documents: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Sequence:
    """Normal inputs. ``documents`` lets documents start at different tokens of each row, the first tokens and two
    neighbours among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, length, width, generator=generator, dtype=torch.float64).to(dtype)
    values = {
        name: torch.randn(batch, length, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in (signals or {}).items()
    }
    return Sequence(x=x, signals=values, tokens=make_tokens(batch, length, documents=documents))


def make_tokens(batch: int, length: int, *, documents: bool = False) -> Tokens:
    """Positions from 0, with ``documents`` restarting at different places in each row."""
    if not documents:
        return Tokens(torch.arange(length).expand(batch, -1).contiguous())
    resets = torch.zeros(batch, length, dtype=torch.bool)
    for row in range(batch):
        for start in document_starts(row, length):
            resets[row, start] = True
    positions = torch.zeros(batch, length, dtype=torch.long)
    for token in range(1, length):
        positions[:, token] = torch.where(resets[:, token], 0, positions[:, token - 1] + 1)
    return Tokens(positions, 0, resets)


def document_starts(row: int, length: int) -> list[int]:
    """Where documents start in a row of ``make_tokens(documents=True)``."""
    starts = [(), (0, length // 3, length // 3 + 1), (length // 2 - 1, length - 1)][row % 3]
    return sorted({start for start in starts if 0 <= start < length})


def cuts(length: int, sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """(start, stop) of pieces whose sizes repeat ``sizes`` until ``length`` is used up."""
    start = 0
    for size in itertools.cycle(sizes):
        if start >= length:
            return
        yield start, min(length, start + size)
        start += size


def leaves(state: State) -> dict[str, Tensor]:
    """Tensors of a state by path. Raises AssertionError where a checkpoint could not hold it."""
    fault = states.unstorable(state, "state")
    assert fault is None, fault
    return {".".join(["state", *path.split("/")]).rstrip("."): value for path, value in states.leaves(state)}


def from_checkpoint(state: State) -> State:
    """The state as a checkpoint gives it back: without what holds no tensor."""
    return states.rebuilt(dict(states.leaves(state)))


def mapped(function: Any, state: State) -> State:
    """The same pytree with every tensor replaced."""
    if state is None:
        return None
    if not isinstance(state, dict):
        return function(state)
    return {key: mapped(function, value) for key, value in state.items()}


def distance(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest magnitude expected, at least 1; NaN counts as infinite."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)} where {tuple(expected.shape)} is due"
    if actual.numel() == 0:
        return 0.0
    if not actual.is_floating_point():
        return float((actual != expected).any())
    scale = max(1.0, expected.detach().abs().max().item())
    worst = ((actual - expected).detach().abs().max() / scale).item()
    return float("inf") if worst != worst else worst


def assert_close(
    actual: Tensor, expected: Tensor, what: str, *, within: float = EXACT, axes: tuple[str, ...] = ()
) -> None:
    """``within`` is meant for float64; equal bits (0) are asked for in every precision. ``axes`` names the leading axes
    of both, by which the first place where they differ is told."""
    within = max(within, NARROWER.get(actual.dtype, 0.0)) if within else 0.0
    worst = distance(actual, expected)
    if worst == float("inf"):
        assert_finite(expected, f"{what}: what it is compared with")
    if worst <= within:
        return
    place = first_difference(actual, expected, within, axes)
    raise AssertionError(f"{what}: differs by {worst:.3g} of the largest magnitude, allowed {within:.0e}{place}")


def first_difference(actual: Tensor, expected: Tensor, within: float, axes: tuple[str, ...]) -> str:
    """Where the first numbers differ by more, as ``, first at row 1, token 3``; nothing without ``axes``.

    The axis that is named last decides what is first: of rows and tokens it is the first token of any row.
    """
    if not axes or not actual.numel():
        return ""
    apart = (actual.double() - expected.double()).detach().abs()
    if apart.ndim > len(axes):
        apart = apart.flatten(len(axes)).amax(-1)
    scale = max(1.0, expected.detach().abs().max().item())
    places = (~(apart <= within * scale)).nonzero()
    if not len(places):
        return ""
    first = places[places[:, -1].argmin()]
    return ", first at " + ", ".join(f"{name} {int(index)}" for name, index in zip(axes, first))


def assert_finite(value: Tensor, what: str) -> None:
    """value (B, N, …). No comparison holds for what is no finite number, so this is asked before them."""
    broken = (~value.isfinite()).nonzero()
    place = f", first at token {int(broken[:, 1].min())}" if len(broken) and value.ndim > 1 else ""
    assert not len(broken), f"{what} is not finite{place}"


def assert_same_state(actual: State, expected: State, what: str, *, within: float = EXACT) -> None:
    left, right = leaves(actual), leaves(expected)
    assert left.keys() == right.keys(), f"{what}: state has {sorted(left)} where {sorted(right)} is due"
    for path, value in right.items():
        assert_close(left[path], value, f"{what}: {path}", within=within)


@torch.no_grad()
def enliven(module: nn.Module, *, seed: int = 1) -> nn.Module:
    """Replace parameters that are nearly zero by random values, so that no dead branch hides a fault."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.numel() and parameter.abs().max() < 1e-3:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.3 * noise)
    return module
