"""A stretch of text as one stream of tokens with the starts of its documents, and contexts over it.

Letters: N tokens, D width.
"""

from __future__ import annotations

import attrs
import numpy as np
import torch
from torch import Tensor

from muse_core.contracts import Tokens
from muse_cvfp.model import Cvfp

AT_ONCE = 8192
"""Tokens of a sweep that are computed together."""


@attrs.frozen(eq=False)
class Stream:
    """Token ids, the token that follows each, and where documents start."""

    ids: Tensor
    """(N,) int64."""
    labels: Tensor
    """(N,) int64."""
    resets: Tensor
    """(N,) bool: a document starts here; token 0 always."""

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, tokens: np.ndarray, starts: np.ndarray, count: int) -> Stream:
        """The first ``count`` tokens of a split, whose last has no successor."""
        count = min(count, len(tokens) - 1)
        ids = torch.from_numpy(np.asarray(tokens[: count + 1]).astype(np.int64))
        resets = torch.zeros(count, dtype=torch.bool)
        resets[torch.from_numpy(np.asarray(starts[starts < count]).astype(np.int64))] = True
        resets[0] = True
        return cls(ids[:-1], ids[1:], resets)

    def to(self, device: torch.device | str) -> Stream:
        return Stream(self.ids.to(device), self.labels.to(device), self.resets.to(device))

    @property
    def document_ends(self) -> Tensor:
        """(N,) int64: the last token, within the stream, of each token's document."""
        number = self.resets.long().cumsum(0) - 1
        starts = self.resets.nonzero()[:, 0]
        ends = torch.cat((starts[1:] - 1, starts.new_tensor([len(self) - 1])))
        return ends[number]


@torch.no_grad()
def sequential(model: Cvfp, stream: Stream, first: Tensor | None = None) -> Tensor:
    """(N, D): the recurrence token by token, the reference for everything else. ``first`` (N, D): at the start of a
    document the context before it, in place of c₀ (``carry = "wrap"``)."""
    x = model.embedded(stream.ids)
    if first is None:
        return model.contexts(x[None], None, Tokens(torch.zeros_like(stream.ids)[None], 0, stream.resets[None]))[0]
    found = torch.empty_like(x)
    resets = stream.resets.tolist()
    for token in range(len(stream)):
        before = first[token] if resets[token] else found[token - 1]
        found[token] = model.next_context(before, x[token])
    return found


def before(model: Cvfp, stream: Stream, previous: Tensor, start: int, stop: int, carry: str) -> Tensor:
    """(stop − start, D): the context that each token continues from: previous[i − 1], or c₀ where a document starts;
    with ``carry`` "wrap" there the document's last of ``previous``. A gradient reaches c₀ only."""
    earlier = previous[max(start - 1, 0) : stop - 1]
    if start == 0:
        earlier = torch.cat((previous[:1], earlier))
    first = previous[stream.document_ends[start:stop]] if carry == "wrap" else model.start.to(previous.dtype)
    return torch.where(stream.resets[start:stop, None], first, earlier.detach())


@torch.no_grad()
def sweep(model: Cvfp, stream: Stream, previous: Tensor, carry: str = "learned", at_once: int = AT_ONCE) -> Tensor:
    """(N, D): one parallel iteration at frozen weights, all contexts from ``previous``; memory beyond the result is
    O(at_once · D)."""
    found = torch.empty_like(previous)
    for start in range(0, len(stream), at_once):
        stop = min(start + at_once, len(stream))
        given = before(model, stream, previous, start, stop, carry)
        found[start:stop] = model.next_context(given, model.embedded(stream.ids[start:stop]))
    return found


@attrs.frozen(eq=False)
class Settled:
    """What sweeps at frozen weights came to."""

    contexts: Tensor
    """(N, D): the last sweep."""
    changes: list[float]
    """Largest difference of one context entry between each sweep and the one before."""

    @property
    def contraction(self) -> float:
        """Geometric mean of the ratios of successive changes, while these stay above rounding."""
        large = [change for change in self.changes if change > 1e-5]
        return (large[-1] / large[0]) ** (1 / (len(large) - 1)) if len(large) > 1 else 0.0


def settle(model: Cvfp, stream: Stream, first: Tensor, *, tolerance: float, most: int | None = None) -> Settled:
    """Sweep until no entry changes by more than ``tolerance``, at most N times: with c₀ at the starts of documents the
    contexts of the first k tokens of each are exact after k sweeps."""
    changes: list[float] = []
    contexts = first
    for _ in range(most or len(stream)):
        following = sweep(model, stream, contexts)
        changes.append((following - contexts).abs().max().item())
        contexts = following
        if changes[-1] <= tolerance:
            break
    return Settled(contexts, changes)
