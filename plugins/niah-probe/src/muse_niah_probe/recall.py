"""Asks a model for its needles, with its memory and with three controls.

Shapes: R rows, N tokens, A tokens of an answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from muse_core.contracts import State, Tokens
from muse_niah_probe.needles import Needles


class Recall(NamedTuple):
    """Means over rows."""

    exact: float
    """Share of rows whose every answer token is the most probable one."""
    log_probability: float
    """Nats per answer token, given the answer so far."""
    over_emptied: float
    """Nats per answer token gained over asking without any carried state."""
    over_shuffled: float
    """Nats per answer token gained over asking with the state of another row, whose needles are others."""
    over_other_key: float
    """Nats per answer token gained over asking for another needle of the same row: nothing where the key is ignored."""


@torch.no_grad()
def recall(model: Any, needles: Needles, *, segment: int) -> Recall:
    """Read the contexts in segments with the state carried, then ask."""
    device = next(model.parameters()).device
    context, question, answer, other_question = (
        torch.from_numpy(np.ascontiguousarray(ids)).long().to(device)
        for ids in (needles.context, needles.question, needles.answer, needles.other_question)
    )
    state = None
    for start in range(0, context.shape[1], segment):
        ids = context[:, start : start + segment]
        state = model(ids, state, _tokens(ids, start)).state
    tokens = _tokens(torch.cat((question, answer[:, :-1]), dim=1), context.shape[1])

    def scores(state: State, question: Tensor) -> Tensor:
        hidden = model(torch.cat((question, answer[:, :-1]), dim=1), state, tokens).hidden[:, question.shape[1] - 1 :]
        return model.logits(hidden).float().log_softmax(-1)

    remembered = scores(state, question)
    exact = (remembered.argmax(-1) == answer).all(-1)
    kept = _of(answer, remembered).mean().item()
    emptied, shuffled, other = (
        _of(answer, scores(given, asked)).mean().item()
        for given, asked in ((None, question), (_rolled(state, len(answer)), question), (state, other_question))
    )
    return Recall(exact.double().mean().item(), kept, kept - emptied, kept - shuffled, kept - other)


def _of(answer: Tensor, scores: Tensor) -> Tensor:
    """Scores (R, A, vocabulary) of the answer tokens (R, A)."""
    return scores.gather(-1, answer[..., None])[..., 0].double()


def _tokens(ids: Tensor, start: int) -> Tokens:
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
    return Tokens(positions, start)


def _rolled(state: State, rows: int) -> State:
    """Every row with the state of the row before it."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.roll(1, 0) if leaf.shape[:1] == (rows,) else leaf, state)
