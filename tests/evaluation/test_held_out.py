"""Held-out measures against their definitions."""

from __future__ import annotations

import contextlib
import math
from functools import partial
from operator import eq
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.contracts import Batch, Tokens
from muse_core.data.batches import micro_batches
from muse_core.errors import DataError
from muse_core.evaluation import cross_entropy as module
from muse_core.evaluation.cross_entropy import cross_entropy, scored
from muse_core.evaluation.held_out import HeldOut, held_out, interval, undisturbed
from muse_core.model.precision import choose_precision
from muse_core.parallel.one import ONE

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
    assert measured.rows.nats.dtype == np.float64, "sums of many tokens in fp32 would not be theirs"


def test_documents_count_by_what_they_weigh() -> None:
    def weight(documents: np.ndarray | None) -> float:
        return held_out(Bigram(), [batch(4, 20, 1)], LENGTHS, PRECISION, documents=documents).documents

    def rows(*documents: int) -> np.ndarray:
        return np.broadcast_to(np.array(documents)[:, None], (4, 20))

    assert weight(None) == weight(rows(5, 9, 2, 0)) == 4.0
    assert weight(rows(3, 3, 3, 8)) == 16 / (9 + 1) and weight(rows(0, 0, 0, 0)) == 1.0


@pytest.mark.parametrize("rows_at_once", [1, 2])
def test_each_document_has_what_its_own_tokens_gave_however_rows_are_cut(rows_at_once: int) -> None:
    """Two rows with parts of three documents each, of which one goes on in the second row."""
    model, one = Bigram().eval(), batch(2, 20, 1, 0.8)
    documents = np.stack((np.repeat([0, 1, 2], [5, 3, 12]), np.repeat([2, 3, 4], [7, 12, 1])))
    batches = micro_batches(one, rows_at_once)
    rows = held_out(model, batches, LENGTHS, PRECISION, documents=documents).rows
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
    with undisturbed(model):
        assert not torch.is_grad_enabled() and not model.training
    held_out(model.eval(), [batch(4, 8)], LENGTHS, PRECISION)
    assert not model.training, "a model in evaluation stays there"


def test_the_model_is_told_where_documents_start() -> None:
    seen = []

    class Told(Bigram):
        def forward(self, inputs: Tensor, state: Any = None, tokens: Any = None) -> Any:
            seen.append((state, tokens.positions.tolist(), tokens.resets.tolist()))
            return super().forward(inputs)

    one = batch(1, 4)
    tokens = Tokens(torch.tensor([[7, 8, 0, 1]]), resets=torch.tensor([[False, False, True, False]]))
    held_out(Told(), [one._replace(tokens=tokens)], LENGTHS, PRECISION)
    assert seen == [(None, tokens.positions.tolist(), tokens.resets.tolist())]


@pytest.mark.parametrize("rows", [2, 5])
def test_the_state_is_counted_for_one_row(rows: int) -> None:
    """With what all rows share counted once, and of the first batch, since the last may be cut."""

    class Carrying(Bigram):
        def forward(self, inputs: Tensor, state: Any = None, tokens: Any = None) -> Any:
            memory = torch.zeros(len(inputs), 2, inputs.shape[1])
            carried = {"memory": [memory, 3], "shared": torch.zeros(11), "none": None}
            return SimpleNamespace(**vars(super().forward(inputs)) | {"state": carried})

    assert held_out(Carrying(), [batch(rows, 7), batch(1, 4)], LENGTHS, PRECISION).state_numbers == 2 * 7 + 11
    assert held_out(Bigram(), [batch(rows, 4)], LENGTHS, PRECISION).state_numbers == 0


def test_interruption_gives_nothing_and_an_empty_split_is_an_error() -> None:
    assert held_out(Bigram(), [batch(2, 4)], LENGTHS, PRECISION, interrupted=lambda: True) is None
    with pytest.raises(DataError, match="no tokens"):
        held_out(Bigram(), [batch(2, 4, loss_mask=0.0)], LENGTHS, PRECISION)


class Dealt:
    """One of the processes of an evaluation; ``told`` has what each of them gave, once all have been asked."""

    def __init__(self, rank: int, told: list[Any], shards: int = 1):
        self.rank, self.size, self.shards, self.told = rank, len(told), shards, told

    def at_work(self, doing: str) -> Any:
        return contextlib.nullcontext()

    def exchange(self, value: Any) -> list[Any]:
        self.told[self.rank] = value
        return [one or value for one in self.told]


class Carrying(Bigram):
    """With a state, whose first axis is that of rows, and something that all rows share."""

    def forward(self, inputs: Tensor, state: Any = None, tokens: Any = None) -> Any:
        carried = {"memory": torch.zeros(len(inputs), 2, inputs.shape[1]), "shared": torch.zeros(11)}
        return SimpleNamespace(**vars(super().forward(inputs)) | {"state": carried})


@pytest.mark.parametrize("size", [2, 3, 5])
def test_processes_that_share_the_batches_find_what_one_finds(size: int) -> None:
    """Documents reach over rows and batches; each rank reads every second, third or fifth batch, the last one less or
    none."""
    batches = [batch(2, 6, seed) for seed in range(4)]
    documents = np.sort(np.random.default_rng(0).integers(6, size=48)).reshape(8, 6)

    def read(ranks: Any = ONE, **more: Any) -> HeldOut | None:
        return held_out(Carrying(), batches, LENGTHS, PRECISION, documents=documents, ranks=ranks, **more)

    one = read()
    assert one is not None and one.state_numbers == 2 * 6 + 11

    def of_all(shards: int, cut: int | None = None) -> list[HeldOut | None]:
        told: list[Any] = [None] * size
        for _ in range(2):
            found = [read(Dealt(rank, told, shards), interrupted=partial(eq, rank, cut)) for rank in range(size)]
        return found

    assert of_all(1) == [one] * size, "each reads its own batches"
    assert of_all(size) == [one] * size, "with divided weights all read every batch together"
    for all_of_it in (*of_all(1), *of_all(size)):
        for name, values in attrs.asdict(one.rows).items():
            assert np.array_equal(getattr(all_of_it.rows, name), values), name
    for rank in range(min(size, len(batches))):
        assert of_all(1, cut=rank) == [None] * size, "one was interrupted"
        assert of_all(size, cut=rank) == [one] * size, "one that left would be waited for"


def test_the_interval_is_of_resampled_documents_by_the_quantiles_of_95_percent() -> None:
    """By hand from the same draws: of documents where there are two or more, without those in which nothing counts."""
    few = np.array([3.0, 1.0, 4.0, 1.0, 5.0]), np.array([2.0, 1.0, 0.0, 0.0, 2.0])
    several = np.random.default_rng(1).random((2, 30)) + 0.5
    for above, below, documents, sums in (
        (*few, [7, 7, 7, 9, 9], [[8.0, 6.0], [3.0, 2.0]]),
        (*few, [0, 0, 1, 1, 2], [[4, 5, 5], [3, 0, 2]]),
        (*several, np.arange(30), several),
    ):
        counted = np.array(sums)
        draws = np.random.default_rng(0).multinomial(counted.shape[1], [1 / counted.shape[1]] * counted.shape[1], 1000)
        totals = draws @ counted.T
        ratios = np.sort((totals[:, 0] / np.where(totals[:, 1] > 0, totals[:, 1], np.nan))[totals[:, 1] > 0])
        due = [np.interp(share * (len(ratios) - 1), np.arange(len(ratios)), ratios) for share in (0.025, 0.975)]
        assert interval(above, below, np.array(documents)) == pytest.approx(tuple(due))
    one = held_out(Bigram(), [batch(4, 20, 1)], LENGTHS, PRECISION, documents=np.repeat([[0], [0], [1], [1]], 20, 1))
    assert (one.low, one.high) == interval(one.rows.nats / math.log(2), one.rows.bytes, one.rows.document)


def test_a_perplexity_beyond_all_numbers_is_told_and_no_error() -> None:
    class Sure(Bigram):
        def logits(self, hidden: Tensor) -> Tensor:
            return 1e4 * hidden

    measured = held_out(Sure(), [batch(2, 20)], LENGTHS, PRECISION)
    assert measured.loss > 710 and measured.perplexity == math.exp(700)


@pytest.mark.parametrize("at_once", [V - 1, V, 7 * V, 10**6])
def test_cross_entropy_in_pieces_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    model, one = Bigram(), batch(3, 11, loss_mask=0.7)
    expected = F.cross_entropy(model.table(one.inputs)[one.loss_mask], one.labels[one.loss_mask], reduction="sum")
    (expected_gradient,) = torch.autograd.grad(expected, [model.table.weight])
    monkeypatch.setattr(module, "SCORES_AT_ONCE", at_once)
    pieces: list[int] = []
    monkeypatch.setattr(model, "logits", lambda some: (pieces.append(len(some)), some)[1])
    total = cross_entropy(model, model.table(one.inputs), one)
    assert max(pieces) <= max(1, at_once // V) and sum(pieces) == 33
    (gradient,) = torch.autograd.grad(total, [model.table.weight])
    assert sum(pieces) == (33 if at_once > 33 * V else 66), "scores of pieces are not kept for the backward pass"
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
    assert not whole[0].requires_grad, "a graph over the whole vocabulary would be kept"
