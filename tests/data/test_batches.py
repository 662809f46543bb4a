"""Batches are functions of the step; what they say about documents is true."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_core.contracts import Batch, Tokens
from muse_core.data.batches import (
    Ahead,
    TaskData,
    TextData,
    TrainingData,
    columns,
    documents_of,
    evaluation_batches,
    evaluation_starts,
    micro_batches,
    pieces,
    rows,
)
from muse_core.data.token_files import Split
from muse_core.errors import DataError

LENGTH = 24


def training(corpus, **keys):
    return TextData(corpus, **{"seed": 0, "batch_size": 6, "sequence_length": LENGTH} | keys)


def same(one, other):
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip((*one[:3], *one.tokens), (*other[:3], *other.tokens), strict=True)
    )


@pytest.fixture(scope="module", params=["permuted", "streams"])
def order(request):
    return request.param


def test_a_batch_depends_on_its_step_alone(numbered, order):
    data = training(numbered, order=order)
    first = [data.batch(step) for step in range(60)]
    fresh = training(numbered, order=order)
    assert all(same(fresh.batch(step), first[step]) for step in reversed(range(60)))


def test_labels_are_the_next_tokens(numbered, order):
    batch = training(numbered, order=order).batch(4)
    assert torch.equal(batch.inputs[:, 1:], batch.labels[:, :-1])
    assert batch.inputs.dtype == batch.labels.dtype == batch.tokens.positions.dtype == torch.int64
    assert batch.inputs.shape == batch.labels.shape == batch.loss_mask.shape == (6, LENGTH)
    assert batch.loss_mask.all() and batch.tokens.valid is None


def test_an_epoch_of_permuted_windows_reads_the_text_once(numbered):
    tokens = numbered.split("train").tokens
    windows = (len(tokens) - 1) // LENGTH
    data = training(numbered, batch_size=1)
    assert data.steps_per_epoch == windows
    for epoch in range(2):
        rows = [data.batch(epoch * windows + step).inputs[0].numpy() for step in range(windows)]
        expected = tokens[: windows * LENGTH].reshape(windows, LENGTH)
        assert sorted(map(bytes, rows)) == sorted(bytes(row) for row in expected.astype(np.int64))
    orders = [[data.batch(e * windows + s).inputs[0].tolist() for s in range(windows)] for e in range(2)]
    assert orders[0] != orders[1], "epochs differ in order"


def test_the_batch_size_only_groups_permuted_windows(numbered):
    small, large = training(numbered, batch_size=2), training(numbered, batch_size=6)
    for step in range(40):
        rows = torch.cat([small.batch(3 * step + part).inputs for part in range(3)])
        assert torch.equal(rows, large.batch(step).inputs)


def test_seeds_give_other_batches(numbered, order):
    one, other = (training(numbered, seed=seed, order=order).batch(0) for seed in (0, 1))
    assert not torch.equal(one.inputs, other.inputs)


def resets_of(tokens):
    """(B, N) bool; a batch without a document start has none."""
    return torch.zeros(tokens.positions.shape, dtype=torch.bool) if tokens.resets is None else tokens.resets


def test_a_batch_without_a_document_start_says_so_by_none(numbered):
    separator = numbered.tokenizer.separator
    for data in (training(numbered), training(numbered, order="streams")):
        for step in range(30):
            batch = data.batch(step)
            starts = batch.inputs == separator
            if batch.tokens.resets is None:
                assert not starts.any()
            else:
                assert batch.tokens.resets.any(), "a tensor that marks nothing keeps kernels from their fast path"


def test_resets_are_where_documents_start(numbered):
    data = training(numbered)
    separator = numbered.tokenizer.separator
    batches = [data.batch(step) for step in range(30)]
    assert any(resets_of(batch.tokens).any() for batch in batches)
    assert all(torch.equal(resets_of(batch.tokens), batch.inputs == separator) for batch in batches)
    assert all(batch.tokens.offset == 0 for batch in batches)


def counted_positions(starts):
    """Positions by walking along: from 0 at the row's beginning and at every start."""
    positions = torch.zeros(starts.shape, dtype=torch.int64)
    for n in range(1, starts.shape[1]):
        positions[:, n] = torch.where(starts[:, n], 0, positions[:, n - 1] + 1)
    return positions


def test_positions_count_from_the_document_or_the_window(numbered):
    for step in range(30):
        tokens = training(numbered).batch(step).tokens
        assert torch.equal(tokens.positions, counted_positions(resets_of(tokens)))


def test_without_document_resets_a_window_is_one_text(numbered):
    tokens = training(numbered, reset_at_documents=False).batch(3).tokens
    assert tokens.resets is None
    assert torch.equal(tokens.positions, torch.arange(LENGTH).expand(6, -1))


def epoch_of_streams(corpus, epoch, **keys):
    data = training(corpus, order="streams", **keys)
    steps = int(data.steps_per_epoch)
    batches = [data.batch(epoch * steps + step) for step in range(steps)]
    return steps, batches, torch.cat([batch.inputs for batch in batches], 1)


def test_streams_read_on(numbered):
    tokens = torch.from_numpy(numbered.split("train").tokens.astype(np.int64))
    stretch = (len(tokens) - 1) // 6
    rows_by_epoch = []
    for epoch in range(2):
        steps, batches, rows = epoch_of_streams(numbered, epoch)
        assert steps == stretch // LENGTH
        expected = [tokens[row * stretch : row * stretch + steps * LENGTH].tolist() for row in range(6)]
        assert sorted(rows.tolist()) == sorted(expected)
        assert [batch.tokens.offset for batch in batches] == [(epoch * steps + k) * LENGTH for k in range(steps)]
        rows_by_epoch.append(rows.tolist())
    assert rows_by_epoch[0] != rows_by_epoch[1], "rows read other stretches in the next epoch"


@pytest.mark.parametrize("reset_at_documents", [True, False])
def test_streams_reset_at_documents_and_where_an_epoch_begins(numbered, reset_at_documents):
    for epoch in range(2):
        _, batches, rows = epoch_of_streams(numbered, epoch, reset_at_documents=reset_at_documents)
        expected = (rows == numbered.tokenizer.separator) & reset_at_documents
        expected[:, 0] = True
        assert torch.equal(torch.cat([resets_of(batch.tokens) for batch in batches], 1), expected)
        positions = torch.cat([batch.tokens.positions for batch in batches], 1)
        assert torch.equal(positions, counted_positions(expected)), "positions run on from step to step"


quarantines = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=4)


@settings(deadline=None)
@given(quarantine=quarantines)
def test_quarantined_data_are_passed_over(numbered, quarantine):
    data = training(numbered)
    left_out = {step for first, end in quarantine for step in range(first, end)}
    expected = [step for step in range(80) if step not in left_out][:40]
    assert [data.data_step(step, quarantine) for step in range(40)] == expected
    assert same(data.batch(7, quarantine), data.batch(expected[7]))


def test_streams_reset_behind_quarantined_data(numbered):
    data = training(numbered, order="streams")
    before, behind, later = (data.batch(step, [(3, 5)]) for step in (2, 3, 4))
    assert same(before, data.batch(2))
    assert torch.equal(behind.inputs, data.batch(5).inputs) and torch.equal(later.inputs, data.batch(6).inputs)
    assert resets_of(behind.tokens)[:, 0].all() and not resets_of(later.tokens)[:, 0].all()
    assert behind.tokens.offset == 3 * LENGTH, "the stream position counts what is read"


def test_too_little_text_is_refused_with_what_to_do(make_corpus):
    corpus = make_corpus(["abcdefgh"] * 4)
    assert training(corpus, sequence_length=9, batch_size=4).batch(0).inputs.shape == (4, 9)
    with pytest.raises(DataError, match=r"has 9 tokens, fewer than 1 × 10 .* shorten train.sequence_length, or"):
        training(corpus, sequence_length=10, batch_size=1)
    with pytest.raises(DataError, match=r"fewer than 4 × 9 .* shorten train.sequence_length or train.batch_size, or"):
        training(corpus, sequence_length=9, batch_size=4, order="streams")


@settings(deadline=None)
@given(length=st.integers(1, 400), rows=st.integers(1, 9))
def test_evaluation_scores_every_token_once(numbered, length, rows):
    split = numbered.split("test")
    batches = list(evaluation_batches(split, sequence_length=length, batch_size=rows))
    labels = torch.cat([batch.labels[batch.loss_mask] for batch in batches])
    assert torch.equal(labels.sort().values, torch.from_numpy(np.sort(split.tokens[1:].astype(np.int64))))
    assert all(batch.inputs.shape[1] == length and len(batch.inputs) <= rows for batch in batches)


def test_evaluation_is_the_same_each_time_and_takes_a_sample_of_all_documents(numbered):
    split = numbered.split("train")

    def read(limit):
        return list(evaluation_batches(split, sequence_length=LENGTH, batch_size=4, max_tokens=limit))

    some, again, everything = read(10 * LENGTH + 5), read(10 * LENGTH + 5), read(None)
    assert all(same(a, b) for a, b in zip(some, again, strict=True))
    assert sum(len(batch.inputs) for batch in some) == 10
    whole = torch.cat([batch.inputs for batch in everything])
    assert torch.equal(torch.cat([batch.inputs for batch in some]), whole[:10])
    assert torch.equal(torch.cat([batch.tokens.positions for batch in read(1)]), everything[0].tokens.positions[:1])
    places = split.tokens.astype(np.int64)[: 10 * LENGTH].reshape(10, LENGTH).tolist()
    assert sum(row in places for row in whole[:10].tolist()) < 5, "not just the beginning"


def test_more_tokens_than_there_are_read_the_text_once(numbered):
    split = numbered.split("validation")
    every = evaluation_starts(split, sequence_length=5, span=10)
    for most in (len(split.tokens), 3 * len(split.tokens)):
        assert evaluation_starts(split, sequence_length=5, span=10, max_tokens=most).tolist() == every.tolist()
    assert len(set(every.tolist())) == len(every)


def test_a_task_is_trained_on_examples_of_its_own_seed_that_nothing_else_reads():
    """And no seed's are another's, however long it trains."""
    class Asked:
        def examples(self, split, numbers, length):
            asked.append((split, numbers.tolist(), length))

    asked = []
    for seed in (0, 1):
        data = TaskData(SimpleNamespace(source=Asked()), seed=seed, batch_size=3, sequence_length=7)
        for step in (0, 2**30):
            data.batch(step)
        data.batch(1, quarantine=[(1, 4)])
    firsts = [0, 3 * 2**30, 12, 2**32, 2**32 + 3 * 2**30, 2**32 + 12]
    assert asked == [("train", [first, first + 1, first + 2], 7) for first in firsts]


def test_lengths_that_share_a_span_score_the_same_tokens(numbered):
    split = numbered.split("train")

    def scored(length):
        batches = evaluation_batches(split, sequence_length=length, batch_size=4, max_tokens=500, span=8 * LENGTH)
        rows = [row[loss_mask].tolist() for batch in batches for row, loss_mask in zip(batch.labels, batch.loss_mask)]
        return sum(rows, [])

    everything = evaluation_batches(split, sequence_length=LENGTH, batch_size=4, span=800 * LENGTH)
    assert all(batch.loss_mask.any(1).all() for batch in everything), "no window lies behind the text"
    assert len(scored(LENGTH)) == 2 * 8 * LENGTH
    assert scored(LENGTH) == scored(2 * LENGTH) == scored(8 * LENGTH)
    with pytest.raises(ValueError, match="a span of 192 tokens cannot be cut into windows of 25"):
        scored(LENGTH + 1)


def test_evaluation_resets_as_asked(numbered):
    split = numbered.split("validation")
    for wanted in (True, False):
        batch = next(evaluation_batches(split, sequence_length=64, batch_size=4, reset_at_documents=wanted))
        assert (batch.tokens.resets is not None) == wanted


@pytest.mark.parametrize("offset", [0, 48])
def test_parts_of_every_row_know_where_they_lie(numbered, offset):
    batch = training(numbered, sequence_length=24).batch(0)
    batch = batch._replace(tokens=batch.tokens._replace(offset=offset))
    parts = [columns(batch, part, 3) for part in range(3)]
    assert [part.tokens.offset for part in parts] == [offset, offset + 8, offset + 16], "periods count from there"
    for name in ("inputs", "labels", "loss_mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts], 1), getattr(batch, name))
    assert torch.equal(torch.cat([part.tokens.positions for part in parts], 1), batch.tokens.positions)
    with pytest.raises(DataError, match="cannot be divided by token"):
        columns(batch._replace(extra={"context": batch.inputs}), 0, 3)


def test_micro_batches_are_the_rows_of_the_batch_in_all_its_parts(numbered):
    """Each knows what share of the whole batch's tokens counts, and where on the periods' grid it lies."""
    batch = training(numbered).batch(0)
    shape, length = batch.inputs.shape, torch.arange(LENGTH)
    valid, resets = length < torch.arange(LENGTH - 5, LENGTH + 1)[:, None], torch.rand(shape) < 0.3
    tokens = Tokens(batch.tokens.positions + length, 16, resets, valid)
    batch = batch._replace(tokens=tokens, loss_mask=valid & (batch.inputs % 2 == 0), extra={"more": torch.rand(shape)})
    parts = list(micro_batches(batch, 4))
    assert [len(part.inputs) for part in parts] == [4, 2]
    for name in ("inputs", "labels", "loss_mask"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name)), name
    for name in ("positions", "resets", "valid"):
        assert torch.equal(torch.cat([getattr(part.tokens, name) for part in parts]), getattr(tokens, name)), name
    assert torch.equal(torch.cat([part.extra["more"] for part in parts]), batch.extra["more"])
    share = int(batch.loss_mask.sum()) / int(valid.sum())
    assert [(part.tokens.offset, part.targets_per_token) for part in parts] == [(16, share)] * 2
    assert rows(batch, 0, 2).targets_per_token == share


class Counted(TrainingData):
    """Steps and quarantines asked for; step 3 fails."""

    early = True

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[tuple[int, int], ...]]] = []

    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        self.asked.append((step, tuple(quarantine)))
        if step == 3:
            raise DataError("step 3")
        return Batch(*(torch.full((1, 1), step) for _ in range(3)), Tokens(torch.zeros(1, 1), 0))


def test_a_batch_that_is_made_ahead_is_that_of_its_step_and_quarantine() -> None:
    data, ahead = Counted(), Ahead()
    ahead.wait()
    ahead.prepare(data, 1, ())
    ahead.wait()
    assert data.asked == [(1, ())] and ahead.batch(data, 1, ()).inputs.item() == 1
    assert ahead.batch(data, 1, ()).inputs.item() == 1 and len(data.asked) == 2, "handed out once"
    ahead.prepare(data, 2, ())
    ahead.wait()
    ahead.batch(data, 2, [(0, 1)])
    assert data.asked[2:] == [(2, ()), (2, ((0, 1),))], "a rollback leaves out other data"
    ahead.prepare(data, 3, ())
    ahead.wait()
    with pytest.raises(DataError, match="step 3"):  # when it is asked for, not while the step before is computed
        ahead.batch(data, 3, ())
    data.early = False
    ahead.prepare(data, 4, ())
    assert data.asked[-1] == (3, ()), "batches that need the weights wait for them"


def test_a_source_that_leaves_the_process_is_heard_of_by_who_waits_for_its_batch() -> None:
    """As sys.exit in a plugin: in a thread it would end the thread alone, and the run would wait for ever."""
    class Leaves(Counted):
        def batch(self, step: int, quarantine: object = ()) -> Batch:
            raise SystemExit(0)

    ahead = Ahead()
    ahead.prepare(Leaves(), 1, ())
    assert isinstance(ahead._made.exception(timeout=60), SystemExit)
    with pytest.raises(SystemExit):
        ahead.batch(Leaves(), 1, ())


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), length=st.integers(1, 40), windows=st.integers(1, 3)
)
def test_what_is_scored_counts_for_the_document_that_it_stands_in(
    sizes: list[int], length: int, windows: int
) -> None:
    """Of whole text every document is told its own tokens, and the separator that ends it, however windows lie."""
    starts = np.cumsum([0, *(1 + size for size in sizes[:-1])])
    tokens = np.concatenate([[0, *[number + 1] * size] for number, size in enumerate(sizes)] + [[0]])
    split = Split(name="test", tokens=tokens, starts=starts, separator=0, num_bytes=sum(sizes))
    how = {"sequence_length": length, "span": windows * length}
    documents = documents_of(split, evaluation_starts(split, **how), length)
    batches = list(evaluation_batches(split, batch_size=3, **how))
    labels, counted = (np.concatenate([getattr(one, name).numpy() for one in batches])
                       for name in ("labels", "loss_mask"))
    begins = pieces(documents)
    own = np.bincount(documents.ravel()[begins], np.add.reduceat((counted * (labels > 0)).ravel(), begins))
    ends = np.bincount(documents.ravel()[begins], np.add.reduceat((counted * (labels == 0)).ravel(), begins))
    assert own.tolist() == sizes and ends.tolist() == [1] * len(sizes)
    text = counted & (labels > 0)
    assert (documents[text] == labels[text] - 1).all()
