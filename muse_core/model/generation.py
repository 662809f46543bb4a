"""Text from a model, token by token, with memory that does not grow where the layers' state does not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import State, Tokens

PREFILL = 512
"""Prompt tokens read at once: bounds the memory of a long prompt."""


class Snapshot(NamedTuple):
    """Where a stream stands. No copy: no layer changes a state that it was given, which the suites test."""

    state: State
    done: int
    """Tokens read."""


class Stream:
    """A model that reads rows of equal length piece by piece, with the state carried as a value."""

    def __init__(
        self,
        model: Any,
        *,
        stream_period: int = 1,
        device: str | torch.device = "cpu",
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
    ):
        """``stream_period`` is the least common multiple of the model's periods."""
        self.model, self.stream_period, self.device, self.precision = model, stream_period, device, precision
        self.state: State = None
        self.done = 0

    def snapshot(self) -> Snapshot:
        """What ``restore`` takes back to."""
        return Snapshot(self.state, self.done)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back: what is read next is read as if nothing had been read since the snapshot."""
        self.state, self.done = snapshot

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Read ids (B, N) at once; returns the scores of what follows each, (B, N, V) float64 on the CPU."""
        ids = ids.to(self.device)
        positions = (self.done + torch.arange(ids.shape[1], device=ids.device)).expand(ids.shape[0], -1)
        with self.precision():
            output = self.model(ids, self.state, Tokens(positions, offset=self.done % self.stream_period))
            scores: Tensor = self.model.logits(output.hidden).double().cpu()
        self.state, self.done = output.state, self.done + ids.shape[1]
        return scores

    def prefill(self, ids: Tensor) -> Tensor:
        """Read a prompt (B, N) in pieces of ``PREFILL``; returns the scores of what follows it, (B, V)."""
        for piece in ids.split(PREFILL, dim=1):
            scores = self.read(piece)
        return scores[:, -1]


def generate(
    model: Any,
    prompt: Sequence[int],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    stream_period: int = 1,
    device: str | torch.device = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[int]:
    """Yield token ids for ever, each drawn from the model's distribution after the prompt and those before it.

    ``temperature`` 0 takes the most likely token; ``top_k`` keeps that many of the most likely, ``top_p`` the smallest
    set of tokens with that probability. ``stream_period`` is the least common multiple of the model's periods. Raises
    ValueError for an empty prompt or values out of range.
    """
    _check([prompt], temperature, top_p, top_k)
    generator = torch.Generator("cpu").manual_seed(seed)
    stream = Stream(model, stream_period=stream_period, device=device, precision=precision)
    scores = stream.prefill(torch.tensor([list(prompt)]))[0]
    while True:
        token = sample(scores, temperature=temperature, top_p=top_p, top_k=top_k, generator=generator)
        yield token
        scores = stream.read(torch.tensor([[token]]))[0, -1]


def generate_batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    ended: Callable[[int, int], bool] | None = None,
    stream_period: int = 1,
    device: str | torch.device = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[list[int]]:
    """``tokens`` ids after each prompt, as ``generate`` with the seeds ``seed``, ``seed + 1``, … draws them one by one.

    Prompts of equal length are read and continued together; others apart, so that nothing is padded and every row has
    its own place on the grid of the periods. ``ended(row, token)``, told every token in its order, says whether the row
    has come to its end: once all that are continued together have, no more is drawn of them. A row that ended before
    the others has tokens after its end. Raises as ``generate``.
    """
    _check(prompts, temperature, top_p, top_k)
    drawn: list[list[int]] = [[] for _ in prompts]
    for length in sorted({len(prompt) for prompt in prompts}):
        rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
        generators = [torch.Generator("cpu").manual_seed(seed + row) for row in rows]
        stream = Stream(model, stream_period=stream_period, device=device, precision=precision)
        scores = stream.prefill(torch.tensor([list(prompts[row]) for row in rows]))
        over: set[int] = set()
        for number in range(tokens):
            for place, row in enumerate(rows):
                drawn[row].append(
                    sample(scores[place], temperature=temperature, top_p=top_p, top_k=top_k,
                           generator=generators[place])
                )
            over.update(row for row in rows if row not in over and ended is not None and ended(row, drawn[row][-1]))
            if len(over) == len(rows):
                break
            if number + 1 < tokens:
                scores = stream.read(torch.tensor([[drawn[row][-1]] for row in rows]))[:, -1]
    return drawn


def generate_by_lookup(
    model: Any,
    prompt: Sequence[int],
    *,
    draft: int = 8,
    match: int = 3,
    stream_period: int = 1,
    device: str | torch.device = "cpu",
    precision: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Iterator[int]:
    """Yield what ``generate`` yields at temperature 0, with up to ``draft`` tokens checked by one forward pass.

    The last ``match`` tokens are looked up in what was read; what followed them there is proposed, and as much of it is
    taken as the model itself finds most likely. What was proposed in vain is taken back by ``Stream.restore``. Equal up
    to rounding: a pass over several tokens adds in another order than passes over one. Source: prompt lookup decoding
    (Saxena 2023), after speculative decoding (Leviathan et al. 2023).
    """
    _check([prompt], 0.0, 1.0, None)
    if draft < 1 or match < 1:
        raise ValueError(f"draft {draft} and match {match} must be at least 1")
    stream = Stream(model, stream_period=stream_period, device=device, precision=precision)
    text = _Followed(prompt, match)
    token = int(stream.prefill(torch.tensor([list(prompt)]))[0].argmax())
    while True:
        text.append(token)
        yield token
        proposed = text.following(draft)
        before = stream.snapshot()
        likely = stream.read(torch.tensor([[token, *proposed]]))[0].argmax(-1).tolist()
        taken = 0
        while taken < len(proposed) and proposed[taken] == likely[taken]:
            taken += 1
        if taken < len(proposed):
            stream.restore(before)
            likely = stream.read(torch.tensor([[token, *proposed[:taken]]]))[0].argmax(-1).tolist()
        for token in proposed[:taken]:
            text.append(token)
            yield token
        token = likely[taken]


class _Followed:
    """A text, and where each run of ``match`` tokens ended last before its end."""

    def __init__(self, prompt: Sequence[int], match: int):
        self.text: list[int] = []
        self.match = match
        self.ends: dict[tuple[int, ...], int] = {}
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        if len(self.text) >= self.match:
            self.ends[tuple(self.text[-self.match :])] = len(self.text)
        self.text.append(token)

    def following(self, count: int) -> list[int]:
        """What followed the last tokens when they stood there before, at most ``count`` tokens; periodic text goes on
        as often as needed."""
        place = self.ends.get(tuple(self.text[-self.match :]))
        if place is None:
            return []
        found = self.text[place : place + count]
        while len(found) < count:
            found += found[: count - len(found)]
        return found


def sample(
    scores: Tensor, *, temperature: float, top_p: float, top_k: int | None = None, generator: torch.Generator
) -> int:
    """One token from scores (V,) in float64."""
    if temperature == 0:
        return int(scores.argmax())
    if top_k is not None and top_k < len(scores):
        kept = scores.topk(top_k).indices
        scores = torch.full_like(scores, -torch.inf).index_copy(0, kept, scores[kept])
    probabilities = torch.softmax(scores / temperature, -1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        probabilities[order[outside]] = 0.0
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _check(prompts: Sequence[Sequence[int]], temperature: float, top_p: float, top_k: int | None) -> None:
    if not all(map(len, prompts)):
        raise ValueError("the prompt is empty; give at least one token")
    if temperature < 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
        raise ValueError(f"temperature {temperature} must be ≥ 0, top_p {top_p} in (0, 1] and top_k {top_k} ≥ 1")
