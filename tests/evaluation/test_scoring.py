"""What a text costs, read in segments, against the same reckoned by hand."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.evaluation.scoring import Reader, score

V, PERIOD = 7, 4


class Remembering(nn.Module):
    """Scores from the sum of all tokens so far, the token's position and the place of its call on the periods' grid."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.randn(60, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.calls: list[tuple[int, int]] = []

    def forward(self, ids: Tensor, state: Any, tokens: Any) -> Any:
        self.calls.append((ids.shape[1], tokens.offset))
        total = ids.cumsum(1) + (0 if state is None else state)
        hidden = self.table[(total + 2 * tokens.positions) % 60]
        return SimpleNamespace(hidden=hidden, state=total[:, -1:])

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden.bfloat16()


def by_hand(model: Remembering, ids: list[int]) -> Tensor:
    """(N, V) float64: log-probabilities of what follows each token of a document."""
    places = [(sum(ids[: n + 1]) + 2 * n) % 60 for n in range(len(ids))]
    return model.table[places].bfloat16().double().log_softmax(-1)


def setup_of(model: Remembering) -> Any:
    precision = type("Plain", (), {"device": torch.device("cpu"), "__call__": lambda self: contextlib.nullcontext()})()
    tokenizer = SimpleNamespace(separator=6, encode=lambda text: [ord(letter) % 6 for letter in text])
    return SimpleNamespace(
        model=model, precision=precision, stream_period=PERIOD, corpus=SimpleNamespace(tokenizer=tokenizer)
    )


@pytest.mark.parametrize("segment", [1, 3, 100])
def test_a_text_costs_the_same_in_segments_of_any_length(segment: int) -> None:
    model = Remembering()
    reader = Reader(setup_of(model), segment=segment)
    ids = torch.randint(V, (2, 12), generator=torch.Generator().manual_seed(1))
    nats, best = reader.losses(ids)
    assert nats.dtype == torch.float64
    for row in range(2):
        due = by_hand(model, ids[row].tolist())[:-1]
        labels = ids[row, 1:]
        assert torch.allclose(nats[row], -due.gather(1, labels[:, None])[:, 0], atol=1e-6)
        assert best[row].tolist() == (due.argmax(-1) == labels).tolist()
    starts = range(0, 11, segment)
    assert model.calls == [(min(segment, 11 - start), start % PERIOD) for start in starts]


@pytest.mark.parametrize("segment", [2, 100])
def test_the_most_likely_continuation_is_that_of_reading_all_anew(segment: int) -> None:
    model, ids = Remembering(), [3, 1, 4, 1, 5]
    drawn = Reader(setup_of(model), segment=segment).greedy(torch.tensor([ids]), 6)[0].tolist()
    for token in drawn:
        assert token == int(by_hand(model, ids)[-1].argmax())
        ids.append(token)
    assert [offset for length, offset in model.calls if length == 1][-5:] == [place % PERIOD for place in range(5, 10)]


def test_bits_per_byte_are_of_the_texts_bytes_and_nats_of_its_own_tokens() -> None:
    model, text = Remembering(), "aβc"
    found = score(setup_of(model), text)
    ids = [ord(letter) % 6 for letter in text]
    likely = by_hand(model, [6, *ids])
    nats = -sum(float(likely[place, token]) for place, token in enumerate(ids))
    assert found.nats == pytest.approx(nats, rel=1e-5) and (found.tokens, found.bytes) == (3, 4)
    assert found.nats_per_token == pytest.approx(nats / 3, rel=1e-5)
    assert found.bits_per_byte == pytest.approx(nats / 4 / math.log(2), rel=1e-5)
