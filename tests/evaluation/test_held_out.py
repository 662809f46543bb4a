"""Held-out measures against their definitions."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import Batch, Tokens
from muse_core.errors import DataError
from muse_core.evaluation import cross_entropy as module
from muse_core.evaluation.cross_entropy import cross_entropy, scored
from muse_core.evaluation.held_out import held_out
from muse_core.model.precision import choose_precision

V = 13
PRECISION = choose_precision(torch.device("cpu"), "fp32")
LENGTHS = np.arange(V) % 4


class Bigram(nn.Module):
    """Scores of the next token from the present one."""

    vocabulary_size = V

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(V, V)
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Tensor, state: Any = None, tokens: Any = None) -> Any:
        return SimpleNamespace(hidden=self.dropout(self.table(inputs)), state=None, losses={}, metrics={})

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def batch(rows: int, length: int, seed: int = 0, loss_mask: float = 1.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(V, (rows, length + 1), generator=generator)
    mask = torch.rand(rows, length, generator=generator) < loss_mask
    return Batch(ids[:, :-1], ids[:, 1:], mask, Tokens(torch.arange(length).expand(rows, -1)))


def nats(model: Bigram, one: Batch) -> Tensor:
    """(B, N), zero where not counted."""
    scores = model.table(one.inputs)
    return -torch.log_softmax(scores, -1).gather(-1, one.labels[..., None])[..., 0] * one.loss_mask


def test_loss_and_bits_per_byte_are_sums_over_all_batches() -> None:
    model = Bigram()
    batches = [batch(3, 20, 1, 0.8), batch(2, 20, 2, 0.5)]
    measured = held_out(model, batches, LENGTHS, PRECISION)
    with torch.no_grad():
        total = sum(nats(model, one).sum().item() for one in batches)
    tokens = sum(int(one.loss_mask.sum()) for one in batches)
    size = sum(int((LENGTHS[one.labels.numpy()] * one.loss_mask.numpy()).sum()) for one in batches)
    assert measured.tokens == tokens and measured.bytes == size
    assert math.isclose(measured.loss, total / tokens, rel_tol=1e-6)
    assert math.isclose(measured.bits_per_byte, total / math.log(2) / size, rel_tol=1e-6)
    assert math.isclose(measured.perplexity, math.exp(measured.loss))


def test_documents_count_by_what_they_weigh() -> None:
    def weight(documents: np.ndarray | None) -> float:
        return held_out(Bigram(), [batch(4, 20, 1)], LENGTHS, PRECISION, documents=documents).documents

    def rows(*documents: int) -> np.ndarray:
        return np.broadcast_to(np.array(documents)[:, None], (4, 20))

    assert weight(None) == weight(rows(5, 9, 2, 0)) == 4.0
    assert weight(rows(3, 3, 3, 8)) == 16 / (9 + 1) and weight(rows(0, 0, 0, 0)) == 1.0


def test_each_document_has_what_its_own_tokens_gave_however_rows_are_cut() -> None:
    """Two rows with parts of three documents each, of which one goes on in the second row."""
    model, one = Bigram().eval(), batch(2, 20, 1, 0.8)
    documents = np.stack((np.repeat([0, 1, 2], [5, 3, 12]), np.repeat([2, 3, 4], [7, 12, 1])))
    rows = held_out(model, [one], LENGTHS, PRECISION, documents=documents).rows
    assert rows.document.tolist() == [0, 1, 2, 2, 3, 4]
    with torch.no_grad():
        each = {
            "nats": nats(model, one).double().numpy(), "tokens": one.loss_mask.numpy(),
            "bytes": LENGTHS[one.labels.numpy()] * one.loss_mask.numpy(),
            "correct": ((model.table(one.inputs).argmax(-1) == one.labels) & one.loss_mask).numpy(),
        }
    for name, values in each.items():
        found = np.bincount(rows.document, getattr(rows, name))
        due = [values[documents == number].sum() for number in range(5)]
        assert np.allclose(found, due, rtol=1e-6), name


def test_interval_covers_what_fresh_samples_give() -> None:
    model = Bigram()
    measured = held_out(model, [batch(200, 16, 3)], LENGTHS, PRECISION)
    assert measured.low < measured.bits_per_byte < measured.high
    others = [held_out(model, [batch(200, 16, seed)], LENGTHS, PRECISION).bits_per_byte for seed in range(10, 50)]
    inside = sum(measured.low - (measured.high - measured.low) < other < 2 * measured.high - measured.low
                 for other in others)
    assert inside >= 36, "the interval is far too narrow"
    assert measured.high - measured.low < 8 * np.std(others), "the interval is far too wide"


def test_evaluation_leaves_mode_and_random_state_alone() -> None:
    model = Bigram().train()
    before = torch.get_rng_state()
    first = held_out(model, [batch(4, 8)], LENGTHS, PRECISION)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert first == held_out(model, [batch(4, 8)], LENGTHS, PRECISION), "dropout acted"


@pytest.mark.parametrize("rows", [2, 5])
def test_the_state_is_counted_for_one_row(rows: int) -> None:
    """With what all rows share counted once, and of the first batch, since the last may be cut."""

    class Carrying(Bigram):
        def forward(self, inputs: Tensor, state: Any = None, tokens: Any = None) -> Any:
            carried = {"memory": [torch.zeros(len(inputs), 2, 7), 3], "shared": torch.zeros(11), "none": None}
            return SimpleNamespace(**vars(super().forward(inputs)) | {"state": carried})

    assert held_out(Carrying(), [batch(rows, 4), batch(1, 4)], LENGTHS, PRECISION).state_numbers == 2 * 7 + 11
    assert held_out(Bigram(), [batch(rows, 4)], LENGTHS, PRECISION).state_numbers == 0


def test_interruption_gives_nothing_and_an_empty_split_is_an_error() -> None:
    assert held_out(Bigram(), [batch(2, 4)], LENGTHS, PRECISION, interrupted=lambda: True) is None
    with pytest.raises(DataError, match="no tokens"):
        held_out(Bigram(), [batch(2, 4, loss_mask=0.0)], LENGTHS, PRECISION)


@pytest.mark.parametrize("at_once", [V, 7 * V, 10**6])
def test_cross_entropy_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    model, one = Bigram(), batch(3, 11, loss_mask=0.7)
    expected = F.cross_entropy(model.table(one.inputs)[one.loss_mask], one.labels[one.loss_mask], reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected, [model.table.weight])
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    total = cross_entropy(model, model.table(one.inputs), one)
    (gradient,) = torch.autograd.grad(total, [model.table.weight])
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    per_token = cross_entropy(model, model.table(one.inputs), one, per_token=True)
    assert per_token.shape == one.labels.shape and not per_token[~one.loss_mask].any()


def test_accuracy_and_rows_are_those_of_the_highest_scores() -> None:
    model = Bigram().eval()
    batches = [batch(3, 20, 1, 0.8), batch(2, 20, 2, 0.5)]
    measured = held_out(model, batches, LENGTHS, PRECISION)
    right = [((model.table(one.inputs).argmax(-1) == one.labels) & one.loss_mask).sum(1) for one in batches]
    assert measured.rows.correct.tolist() == torch.cat(right).tolist()
    assert measured.accuracy == pytest.approx(measured.rows.correct.sum() / measured.tokens)
    assert measured.rows.tokens.tolist() == torch.cat([one.loss_mask.sum(1) for one in batches]).tolist()
    assert measured.rows.nats.sum() / measured.tokens == pytest.approx(measured.loss)
    assert measured.rows.bytes.sum() == measured.bytes


def test_scores_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, one = Bigram().eval(), batch(4, 9, 3, 0.7)
    whole = scored(model, model.table(one.inputs), one)
    monkeypatch.setattr(module, "SCORES_AT_ONCE", 5 * V)
    for first, second in zip(whole, scored(model, model.table(one.inputs), one)):
        assert torch.equal(first, second)
    assert torch.allclose(whole[0], cross_entropy(model, model.table(one.inputs), one, per_token=True))
