"""Asks a model for its needles, with its memory and with the two controls.

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
    """Nats per answer token gained over asking with the state of another row, whose needle is another."""


@torch.no_grad()
def recall(model: Any, needles: Needles, *, segment: int) -> Recall:
    """Read the contexts in segments with the state carried, then ask."""
    device = next(model.parameters()).device
    context, question, answer = (
        torch.from_numpy(np.ascontiguousarray(ids)).long().to(device)
        for ids in (needles.context, needles.question, needles.answer)
    )
    state = None
    for start in range(0, context.shape[1], segment):
        ids = context[:, start : start + segment]
        state = model(ids, state, _tokens(ids, start)).state
    asked = torch.cat((question, answer[:, :-1]), dim=1)
    tokens = _tokens(asked, context.shape[1])

    def scores(state: State) -> Tensor:
        hidden = model(asked, state, tokens).hidden[:, question.shape[1] - 1 :]
        return model.logits(hidden).float().log_softmax(-1)

    remembered = scores(state)
    exact = (remembered.argmax(-1) == answer).all(-1)
    kept, emptied, shuffled = (
        _of(answer, given).mean().item() for given in (remembered, scores(None), scores(_rolled(state, len(answer))))
    )
    return Recall(exact.double().mean().item(), kept, kept - emptied, kept - shuffled)


def _of(answer: Tensor, scores: Tensor) -> Tensor:
    """Scores (R, A, vocabulary) of the answer tokens (R, A)."""
    return scores.gather(-1, answer[..., None])[..., 0].double()


def _tokens(ids: Tensor, start: int) -> Tokens:
    positions = torch.arange(start, start + ids.shape[1], device=ids.device).expand(ids.shape[0], -1)
    return Tokens(positions, start)


def _rolled(state: State, rows: int) -> State:
    """Every row with the state of the row before it."""
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.roll(1, 0) if leaf.shape[:1] == (rows,) else leaf, state)
