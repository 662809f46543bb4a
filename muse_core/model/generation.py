"""Text from a model, token by token, with memory that does not grow where the layers' state does not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import State
from muse_core.model.replay import Carried, Replays, positions_of

PREFILL = 512
"""Prompt tokens read at once: bounds the memory of a long prompt."""


class Snapshot(NamedTuple):
    """Where a stream stands. Nothing that is read later changes it."""

    carried: Carried
    done: int
    """Tokens read."""

    @property
    def state(self) -> State:
        """As ``contracts.ModelOutput`` has it."""
        return self.carried.state


class Stream:
    """A model that reads rows of equal length piece by piece, with the state carried as a value.

    Calls that recur, such as those for one token, are recorded and replayed: the same operations without the modules'
    own code around them, on a GPU as one CUDA graph. The weights must not change while a stream reads.
    """

    def __init__(
        self,
        model: Any,
        *,
        stream_period: int = 1,
        device: str | torch.device = "cpu",
        precision: Callable[[], AbstractContextManager[object]] = nullcontext,
        eager: bool = False,
    ):
        """``stream_period`` is the least common multiple of the model's periods. ``eager``: record nothing."""
        self.model, self.device = model, torch.device(device)
        self.replays = Replays(model, stream_period, self.device, precision)
        self.eager = eager
        self.carried = Carried.of(None)
        self.done = 0

    @property
    def state(self) -> State:
        """As ``contracts.ModelOutput`` has it."""
        return self.carried.state

    def snapshot(self) -> Snapshot:
        """What ``restore`` takes back to."""
        self.carried = self.carried.lasting()
        return Snapshot(self.carried, self.done)

    def restore(self, snapshot: Snapshot) -> None:
        """Go back: what is read next is read as if nothing had been read since the snapshot."""
        self.carried, self.done = snapshot

    @torch.no_grad()
    def read(self, ids: Tensor) -> Tensor:
        """Read ids (B, N) at once; returns the scores of what follows each, (B, N, V) float64 on the CPU."""
        found = None if self.eager else self.replays(ids, self.carried, self.done)
        if found is None:
            ids = ids.to(self.device)
            found = self.replays.own(ids, positions_of(ids, self.done), self.carried, self.done)
        scores, self.carried = found
        self.done += ids.shape[1]
        return scores.cpu().double()

    @torch.no_grad()
    def prefill(self, ids: Tensor) -> Tensor:
        """Read a prompt (B, N) in pieces of ``PREFILL``; returns the scores of what follows it, (B, V) float64 on the
        CPU. No other place is scored: of a large vocabulary that would take more time and memory than the prompt."""
        pieces = ids.split(PREFILL, dim=1)
        for number, piece in enumerate(pieces):
            piece = piece.to(self.device)
            last = 1 if number + 1 == len(pieces) else 0
            scores, self.carried = self.replays.own(
                piece, positions_of(piece, self.done), self.carried, self.done, scored=last
            )
            self.done += piece.shape[1]
        return scores[:, -1].cpu().double()


def generate(
    model: Any,
    prompt: Sequence[int],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    **reading: Any,
) -> Iterator[int]:
    """Yield token ids for ever, each drawn from the model's distribution after the prompt and those before it.

    ``temperature`` 0 takes the most likely token; ``top_k`` keeps that many of the most likely, ``top_p`` the smallest
    set of tokens with that probability. ``reading``: ``stream_period``, ``device``, ``precision`` and ``eager`` as
    ``Stream`` takes them. Raises ValueError for an empty prompt or values out of range.
    """
    _check([prompt], temperature, top_p, top_k)
    generators = [torch.Generator("cpu").manual_seed(seed)]
    stream = Stream(model, **reading)
    scores = stream.prefill(torch.tensor([list(prompt)]))
    while True:
        tokens = sample(scores, temperature=temperature, top_p=top_p, top_k=top_k, generators=generators)
        yield tokens[0]
        scores = stream.read(torch.tensor([tokens]))[:, -1]


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
    **reading: Any,
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
        stream = Stream(model, **reading)
        scores = stream.prefill(torch.tensor([list(prompts[row]) for row in rows]))
        over: set[int] = set()
        for number in range(tokens):
            found = sample(scores, temperature=temperature, top_p=top_p, top_k=top_k, generators=generators)
            for row, token in zip(rows, found):
                drawn[row].append(token)
            over.update(row for row in rows if row not in over and ended is not None and ended(row, drawn[row][-1]))
            if len(over) == len(rows):
                break
            if number + 1 < tokens:
                scores = stream.read(torch.tensor(found)[:, None])[:, -1]
    return drawn


def generate_by_lookup(
    model: Any, prompt: Sequence[int], *, draft: int = 8, match: int = 3, **reading: Any
) -> Iterator[int]:
    """Yield what ``generate`` yields at temperature 0, with up to ``draft`` tokens checked by one forward pass.

    The last ``match`` tokens are looked up in what was read; what followed them there is proposed, and as much of it is
    taken as the model itself finds most likely. Where something was proposed in vain ``Stream.restore`` takes the pass
    back, and the next one begins with what was taken, so that nearly all passes are of one length and can be replayed.
    Equal up to rounding: a pass over several tokens adds in another order than passes over one. Source: prompt lookup
    decoding (Saxena 2023), after speculative decoding (Leviathan et al. 2023). Raises ValueError for an empty prompt
    and for ``draft`` or ``match`` below 1.
    """
    _check([prompt], 0.0, 1.0, None)
    if draft < 1 or match < 1:
        raise ValueError(f"draft {draft} and match {match} must be at least 1")
    stream = Stream(model, **reading)
    text = _Followed(prompt, match)
    unread = [int(stream.prefill(torch.tensor([list(prompt)]))[0].argmax())]
    text.append(unread[0])
    yield unread[0]
    while True:
        proposed = text.following(draft + 1 - len(unread))
        before = stream.snapshot()
        likely = stream.read(torch.tensor([[*unread, *proposed]]))[0].argmax(-1).tolist()[len(unread) - 1 :]
        taken = 0
        while taken < len(proposed) and proposed[taken] == likely[taken]:
            taken += 1
        found = likely[: taken + 1]
        if taken == len(proposed):
            unread = found[-1:]
        else:
            stream.restore(before)
            unread += found
        for token in found:
            text.append(token)
            yield token


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
    scores: Tensor, *, temperature: float, top_p: float, top_k: int | None = None, generators: Sequence[torch.Generator]
) -> list[int]:
    """A token a row of scores (B, V) in float64, each row drawn with its own generator."""
    if temperature == 0:
        return [int(token) for token in scores.argmax(-1)]
    if top_k is not None and top_k < scores.shape[1]:
        kept = scores.topk(top_k).indices
        scores = torch.full_like(scores, -torch.inf).scatter(1, kept, scores.gather(1, kept))
    # Less the largest, so that nothing overflows however small the temperature is.
    probabilities = torch.softmax((scores - scores.amax(-1, keepdim=True)) / temperature, -1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= top_p
        probabilities = probabilities.scatter(1, order, ordered.masked_fill(outside, 0.0))
    return [
        int(torch.multinomial(row, 1, generator=generator)) for row, generator in zip(probabilities, generators)
    ]


def _check(prompts: Sequence[Sequence[int]], temperature: float, top_p: float, top_k: int | None) -> None:
    if not all(map(len, prompts)):
        raise ValueError("the prompt is empty; give at least one token")
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"temperature {temperature} must be finite and ≥ 0, top_p {top_p} in (0, 1] and top_k {top_k} ≥ 1"
        )
