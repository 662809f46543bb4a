"""The layer suite catches what goes wrong after a chunk of 64 tokens only, and says where an output differs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, State, Tokens
from muse_core.testing.layers import LayerSuite

CHUNK = 64


@attrs.frozen(kw_only=True)
class NoOptions:
    """Nothing to choose."""


class Right(nn.Module):
    """Adds up what a document's tokens are mapped to, halved at every token."""

    def __init__(self, options: Any, context: Any):
        super().__init__()
        self.map = nn.Linear(context.width, context.width, bias=False)

    def forward(self, x: Tensor, state: State, signals: Any, tokens: Tokens) -> LayerOutput:
        mapped = self.map(x).to(torch.promote_types(x.dtype, torch.float32))
        total = torch.zeros_like(mapped[:, 0]) if state is None else self.given(state["total"])
        totals = []
        for token in range(x.shape[1]):
            if tokens.resets is not None:
                total = total.masked_fill(tokens.resets[:, token, None], 0.0)
            added = total / 2 + mapped[:, token]
            total = added if tokens.valid is None else torch.where(tokens.valid[:, token, None], added, total)
            totals.append(total)
        update = self.seen(torch.stack(totals, 1))
        return LayerOutput(update.to(x.dtype), {"total": self.kept(totals)})

    def given(self, total: Tensor) -> Tensor:
        return total

    def seen(self, totals: Tensor) -> Tensor:
        return totals

    def kept(self, totals: list[Tensor]) -> Tensor:
        return totals[-1]


class HandsOnTheLastWholeChunk(Right):
    """As a kernel in chunks does that leaves the tokens behind the last chunk to its caller."""

    def kept(self, totals: list[Tensor]) -> Tensor:
        whole = len(totals) // CHUNK * CHUNK
        return totals[whole - 1] if whole else totals[-1]


class DetachesTheStateOfWholeChunks(Right):
    def kept(self, totals: list[Tensor]) -> Tensor:
        return totals[-1].detach() if len(totals) > CHUNK else totals[-1]


class ForgetsItsState(Right):
    def given(self, total: Tensor) -> Tensor:
        return torch.zeros_like(total)


class SeesTheNextToken(Right):
    def seen(self, totals: Tensor) -> Tensor:
        return totals + torch.cat((totals[:, 1:], totals[:, -1:]), 1)


class HasAnotherGradient(Right):
    def seen(self, totals: Tensor) -> Tensor:
        return totals.detach() * totals


PIECES = "test_pieces_give_what_the_whole_gives"
LONG_PIECES = "test_pieces_of_a_long_row_give_what_the_whole_gives"
LONG_GRADIENTS = "test_gradients_through_pieces_of_a_long_row_are_those_of_the_whole"


@pytest.mark.parametrize(
    ("wrong", "test", "short"),
    [
        (HandsOnTheLastWholeChunk, LONG_PIECES, PIECES),
        (DetachesTheStateOfWholeChunks, LONG_GRADIENTS, "test_gradients_through_pieces_are_those_of_the_whole"),
    ],
)
def test_what_is_wrong_behind_a_chunk_alone_is_caught(
    complaint: Callable[..., str | None], wrong: type, test: str, short: str
) -> None:
    assert complaint(LayerSuite, wrong, NoOptions, test)
    assert complaint(LayerSuite, wrong, NoOptions, short) is None, "rows of 21 tokens show it too"
    assert complaint(LayerSuite, Right, NoOptions, test) is None


@pytest.mark.parametrize(
    ("wrong", "test", "place"),
    [
        (HandsOnTheLastWholeChunk, LONG_PIECES, "in pieces of (70, 2): .* first at row 0, token 70$"),
        (ForgetsItsState, PIECES, "in pieces of (1,): .* first at row 0, token 1$"),
        (
            SeesTheNextToken,
            "test_a_large_change_reaches_no_earlier_token_and_no_other_row",
            "before the change of x at token 7 depends on it (eval): .* first at token 6$",
        ),
        (SeesTheNextToken, "test_documents_are_separate", "tokens 0 to 7 of row 1: .* first at its token 6$"),
        (HasAnotherGradient, "test_gradients_are_the_derivative", "input x alone .*; for parameter map.weight alone"),
    ],
)
def test_the_place_is_told(complaint: Callable[..., str | None], wrong: type, test: str, place: str) -> None:
    pattern = place.replace("(", r"\(").replace(")", r"\)")
    said = str(complaint(LayerSuite, wrong, NoOptions, test))
    assert re.search(pattern, said), said
