"""What a text costs a model: token by token from its start, with the state carried, so that memory is bounded.

Letters: B rows, N tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_core.contracts import State, Tokens
from muse_core.errors import DataError
from muse_core.evaluation.held_out import undisturbed
from muse_core.model.generation import generate

SEGMENT = 512
"""Tokens that are read at once."""


class Reader:
    """Calls the model of a ``Setup`` on token ids, segment by segment, with its state carried."""

    def __init__(self, setup: Any, *, segment: int = SEGMENT):
        self.model = setup.model
        self.precision = setup.precision
        self.stream_period = setup.stream_period
        self.segment = segment

    def read(self, ids: Tensor, state: State = None, done: int = 0) -> Iterator[tuple[Tensor, State]]:
        """(hidden, state) after each segment of ids (B, N), of which ``done`` tokens went before."""
        for start in range(0, ids.shape[1], self.segment):
            piece = ids[:, start : start + self.segment].to(self.precision.device)
            first = done + start
            positions = (first + torch.arange(piece.shape[1], device=piece.device)).expand(piece.shape[0], -1)
            with undisturbed(self.model), self.precision():
                output = self.model(piece, state, Tokens(positions, offset=first % self.stream_period))
            state = output.state
            yield output.hidden, state

    def after(self, ids: Tensor, state: State = None, done: int = 0) -> tuple[Tensor, State]:
        """Hidden (B, 1) of the last token and the state after all of ids (B, N)."""
        ((hidden, after),) = deque(self.read(ids, state, done), maxlen=1)  # earlier states are let go
        return hidden[:, -1:], after

    def logits(self, hidden: Tensor) -> Tensor:
        """(B, n, V) fp32."""
        with torch.no_grad(), self.precision():
            scores: Tensor = self.model.logits(hidden)
        return scores.float()

    def losses(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Nats that each token of ids (B, N) costs given those before it in its row, and whether it was the most likely
        one; each (B, N − 1) on the CPU, of the tokens after the first."""
        nats, best = [], []
        done = 0
        for hidden, _ in self.read(ids[:, :-1]):
            labels = ids[:, done + 1 : done + 1 + hidden.shape[1]].to(hidden.device)
            done += hidden.shape[1]
            scores = self.logits(hidden)
            loss = F.cross_entropy(scores.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
            nats.append(loss.double().cpu())
            best.append((scores.argmax(-1) == labels).cpu())
        return torch.cat(nats, 1), torch.cat(best, 1)

    def greedy(self, ids: Tensor, count: int) -> Tensor:
        """(B, count): what follows ids (B, N), each token the most likely one."""
        state: State = None
        done = 0
        drawn: list[Tensor] = []
        following = ids
        while len(drawn) < count:
            hidden, state = self.after(following, state, done)
            done += following.shape[1]
            following = self.logits(hidden).argmax(-1)
            drawn.append(following.cpu())
        return torch.cat(drawn, 1)

    def draw(
        self, prompt: Sequence[int], *, temperature: float, top_p: float = 1.0, top_k: int | None = None, seed: int = 0
    ) -> Iterator[int]:
        """``generation.generate`` with this model."""
        with undisturbed(self.model):
            yield from generate(
                self.model, prompt, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed,
                stream_period=self.stream_period, device=self.precision.device, precision=self.precision,
            )


class Score(NamedTuple):
    """What a text costs a model."""

    bits_per_byte: float
    nats_per_token: float
    nats: float
    tokens: int
    bytes: int


def score(setup: Any, text: str) -> Score:
    """The text as one document after a separator: every token counts once, given all tokens before it, and the
    separator itself does not count. Raises DataError for a text without a token."""
    ids = [int(token) for token in setup.corpus.tokenizer.encode(text)]
    if not ids:
        raise DataError("the text is empty; give at least one character")
    nats = score_ids(Reader(setup), setup.corpus.tokenizer.separator, ids)
    size = len(text.encode())
    return Score(nats / math.log(2) / size, nats / len(ids), nats, len(ids), size)


def score_ids(reader: Reader, prefix: int, ids: Sequence[int]) -> float:
    """Nats of the ids after the token ``prefix``."""
    losses, _ = reader.losses(torch.tensor([[prefix, *ids]]))
    return float(losses.sum())
