"""Batches as pure functions: of the step in training, of the split in evaluation."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import torch

from muse_core.contracts import Batch, TaskSource, Tokens
from muse_core.data.permutation import data_step, permute, shuffled
from muse_core.data.token_files import Split
from muse_core.errors import DataError


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of a batch."""
    tokens = batch.tokens
    return Batch(
        batch.inputs[start:stop],
        batch.labels[start:stop],
        batch.loss_mask[start:stop],
        Tokens(
            tokens.positions[start:stop],
            tokens.offset,
            None if tokens.resets is None else tokens.resets[start:stop],
            None if tokens.valid is None else tokens.valid[start:stop],
        ),
        {name: value[start:stop] for name, value in batch.extra.items()},
        targets_per_token(batch),
    )


def columns(batch: Batch, part: int, parts: int) -> Batch:
    """Part ``part`` of ``parts`` of every row's tokens, which divide them. Raises DataError for a batch that holds more
    than tokens."""
    if batch.extra:
        name = next(iter(batch.extra))
        raise DataError(f"parallel.context: {name} of this stage's batches cannot be divided by token")
    length = batch.inputs.shape[1] // parts
    here, tokens = slice(part * length, (part + 1) * length), batch.tokens
    return batch._replace(
        inputs=batch.inputs[:, here],
        labels=batch.labels[:, here],
        loss_mask=batch.loss_mask[:, here],
        tokens=Tokens(
            tokens.positions[:, here],
            tokens.offset + here.start,
            None if tokens.resets is None else tokens.resets[:, here],
            None if tokens.valid is None else tokens.valid[:, here],
        ),
        target_places=None,
    )


def targets_per_token(batch: Batch) -> float | torch.Tensor:
    """Targets that count over valid tokens, of the batch that this one is a part of; a tensor if it was moved to a
    device with its share."""
    if batch.targets_per_token is not None:
        return batch.targets_per_token
    valid = batch.tokens.valid
    # By numpy, so that it is no read of a tensor: a step reads once from the device.
    tokens = batch.loss_mask.numel() if valid is None else max(int(valid.cpu().numpy().sum()), 1)
    return int(batch.loss_mask.cpu().numpy().sum()) / tokens


def micro_batches(batch: Batch, size: int | None) -> Iterator[Batch]:
    """The batch in pieces of at most ``size`` rows; one piece when None."""
    total = batch.inputs.shape[0]
    batch = batch._replace(targets_per_token=targets_per_token(batch))  # once for all pieces
    for start in range(0, total, size or total):
        yield rows(batch, start, min(start + (size or total), total))


def targets_of_pieces(batch: Batch, places: int, sharing: int, size: int | None) -> list[int]:
    """Labels that count of every micro-batch of at most ``size`` rows, of ``places`` times ``sharing`` processes among
    which rows and tokens are divided."""
    counts = batch.loss_mask.numpy().reshape(places, -1, sharing, batch.loss_mask.shape[1] // sharing).sum(-1)
    starts = range(0, counts.shape[1], size or counts.shape[1])
    found: list[int] = np.add.reduceat(counts, list(starts), axis=1).ravel().tolist()
    return found


def target_room(batches: Sequence[Batch], most: int | None = None) -> int:
    """Places to score in each of a step's batches on the host: those of the largest batch, halved as often as they hold
    the labels that count in any. A few sizes, so that the steps of a task whose targets vary have a few shapes.

    ``most``: labels that count in any, where other processes' batches of these sizes are to have the same room.
    """
    if most is None:
        most = max(int(batch.loss_mask.numpy().sum()) for batch in batches)
    room = max(batch.loss_mask.numel() for batch in batches)
    while most <= room // 2 and room > 1:
        room //= 2
    return room


def target_places(loss_mask: torch.Tensor, room: int) -> torch.Tensor | None:
    """``Batch.target_places`` of a mask (B, N) bool on the host: the places that count, and others up to ``room``,
    (room,) int64; None for all. ``room`` is at least the number of those that count."""
    mask = loss_mask.numpy().ravel()
    if room >= len(mask):
        return None
    places = np.flatnonzero(mask)
    others = np.flatnonzero(~mask)[: room - len(places)]
    return torch.from_numpy(np.concatenate((places, others)))


def to_device(batch: Batch, device: torch.device, room: int | None = None) -> Batch:
    """The batch on ``device``, with the places to score; from pinned memory without waiting.

    ``room``: ``target_room`` of the batches of a step (default: of this one).
    """

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if device.type == "cuda":
            # An expanded tensor cannot be pinned.
            return tensor.contiguous().pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    tokens, places, share = batch.tokens, batch.target_places, batch.targets_per_token
    if batch.loss_mask.device.type == "cpu":
        places = target_places(batch.loss_mask, target_room([batch]) if room is None else room)
    if share is not None:  # filled in, rather than copied; a recorded step reads it where it is
        share = torch.full((), float(share), dtype=torch.float64, device=device)
    return Batch(
        move(batch.inputs),
        move(batch.labels),
        move(batch.loss_mask),
        Tokens(
            move(tokens.positions),
            tokens.offset,
            None if tokens.resets is None else move(tokens.resets),
            None if tokens.valid is None else move(tokens.valid),
        ),
        {name: move(value) for name, value in batch.extra.items()},
        share,
        None if places is None else move(places),
    )


class HasSource(Protocol):
    """A task."""

    source: TaskSource


class HasSplits(Protocol):
    """A corpus of text."""

    def split(self, name: str) -> Split: ...


class TrainingData(ABC):
    """What a stage trains on. Holds no cursor: ``batch`` depends on its arguments alone, so that a rollback and a
    resumed run need nothing of it. A subclass gives ``batch``."""

    steps_per_epoch: float = math.inf
    """Steps that read everything once; infinite where data are made."""
    early = False
    """Whether a batch may be made before the step that reads it begins: it needs neither weights nor the device."""

    def data_step(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> int:
        """Which step's data ``step`` reads; see ``muse_core.data.permutation.data_step``."""
        return data_step(step, quarantine)

    @abstractmethod
    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        """The batch of an optimiser step, on the CPU, without the data of the quarantined steps: half-open ranges
        (first, end) of data steps."""


class Ahead:
    """Batches of training data, of which the next is made by a thread while the present step is computed.

    An error of a batch that is made ahead is raised when the batch is asked for, as if it had been made then.
    """

    def __init__(self) -> None:
        self._key: tuple[int, tuple[tuple[int, int], ...]] | None = None
        self._made: Future[Batch] = Future()

    def prepare(self, data: TrainingData, step: int, quarantine: Sequence[tuple[int, int]]) -> None:
        """Begin with the batch of a step, where ``data`` can; a stage's own need not say so."""
        if not getattr(data, "early", False):
            return
        made: Future[Batch] = Future()
        self._key, self._made = (step, tuple(quarantine)), made

        def make() -> None:
            try:
                made.set_result(data.batch(step, quarantine))
            except BaseException as error:  # a task of a plugin may call sys.exit: who waits must hear of it
                made.set_exception(error)

        threading.Thread(target=make, name="next batch").start()

    def wait(self) -> None:
        """Until the batch is made: what follows a step may read the same data."""
        if self._key is not None:
            self._made.exception()

    def made(self) -> Batch | None:
        """The batch that is made ahead, which stays here; waits until it is made. None where there is none, or an
        error."""
        return None if self._key is None or self._made.exception() is not None else self._made.result()

    def batch(self, data: TrainingData, step: int, quarantine: Sequence[tuple[int, int]]) -> Batch:
        """``data.batch(step, quarantine)``; what was made ahead is handed out once."""
        key, self._key = self._key, None
        return self._made.result() if key == (step, tuple(quarantine)) else data.batch(step, quarantine)


class TextData(TrainingData):
    """The training split of a text in batches.

    order "permuted": windows of ``sequence_length`` tokens in an order that is a function of seed, epoch and index,
    each read with fresh state. order "streams": ``batch_size`` contiguous stretches, one a row, read on from step to
    step with the state carried; which stretch a row reads changes with the epoch.

    Documents are packed: a window holds the end of one and the beginning of the next. Text at the end that does not
    fill a window is left out.
    """

    early = True

    def __init__(
        self,
        corpus: HasSplits,
        *,
        seed: int,
        batch_size: int,
        sequence_length: int,
        order: str = "permuted",
        reset_at_documents: bool = True,
    ):
        self._text = corpus.split("train")
        self._seed = seed
        self._batch_size = batch_size
        self._length = sequence_length
        self._streams = order == "streams"
        self._reset_at_documents = reset_at_documents
        self._num_labels = len(self._text.tokens) - 1
        rows = batch_size if self._streams else 1
        self._windows_per_row = self._num_labels // rows // sequence_length
        if not self._windows_per_row:
            raise DataError(
                f"the training text has {self._num_labels} tokens, fewer than {rows} × {sequence_length} that "
                f"{'the streams of a batch need' if self._streams else 'a window needs'}: shorten "
                f"train.sequence_length{' or train.batch_size' if self._streams else ''}, or give more text"
            )

        self.steps_per_epoch = self._windows_per_row / (1 if self._streams else batch_size)

    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        """The batch of an optimiser step, (batch_size, sequence_length), on the CPU.

        Row r of step s is fixed, whatever ranks and micro-batches the rows are dealt to. In streams ``tokens.offset``
        is the unreduced stream position, step × sequence_length, and token 0 resets where a row does not continue the
        previous step's text: at the start, at a new epoch, behind a quarantined step.
        """
        if self._streams:
            return self._stream_batch(step, quarantine)
        places = self.data_step(step, quarantine) * self._batch_size + np.arange(self._batch_size, dtype=np.int64)
        windows = shuffled(places, self._windows_per_row, seed=self._seed)
        return read_windows(self._text, windows * self._length, self._length, self._reset_at_documents)

    def _stream_batch(self, step: int, quarantine: Sequence[tuple[int, int]]) -> Batch:
        data_step = self.data_step(step, quarantine)
        epoch, window = divmod(data_step, self._windows_per_row)
        places = epoch * self._batch_size + np.arange(self._batch_size, dtype=np.int64)
        stretches = shuffled(places, self._batch_size, seed=self._seed)
        origins = stretches * (self._num_labels // self._batch_size)
        starts = origins + window * self._length
        batch = read_windows(self._text, starts, self._length, self._reset_at_documents, origins=origins)
        continues = step > 0 and window > 0 and self.data_step(step - 1, quarantine) == data_step - 1
        resets = batch.tokens.resets
        if not continues:
            resets = torch.zeros_like(batch.loss_mask) if resets is None else resets
            resets[:, 0] = True
        return batch._replace(tokens=batch.tokens._replace(offset=step * self._length, resets=resets))


class TaskData(TrainingData):
    """The training examples in batches; examples are functions of their number, so that no epoch ends."""

    early = True

    def __init__(self, corpus: HasSource, *, seed: int, batch_size: int, sequence_length: int):
        self._source = corpus.source
        self._first = seed << 32
        self._batch_size = batch_size
        self._length = sequence_length

    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        """The batch of an optimiser step, (batch_size, sequence_length), on the CPU."""
        first = self._first + self.data_step(step, quarantine) * self._batch_size
        return self._source.examples("train", np.arange(first, first + self._batch_size), self._length)


def evaluation_batches(
    split: Split,
    *,
    sequence_length: int,
    batch_size: int,
    max_tokens: int | None = None,
    span: int | None = None,
    reset_at_documents: bool = True,
) -> Iterator[Batch]:
    """The same batches every time: windows read with fresh state, every token of the split scored at most once, and
    exactly once without ``max_tokens``.

    span: tokens that are taken together, a multiple of ``sequence_length`` (default: that); sequence lengths that
    share a span read the same text. Spans come in a fixed shuffled order, so that ``max_tokens`` (in whole spans, at
    least one) takes a sample of all documents. The window at the end of the text is filled up with separators that
    are not counted. The last batch may have fewer rows.
    """
    starts = evaluation_starts(split, sequence_length=sequence_length, max_tokens=max_tokens, span=span)
    for first in range(0, len(starts), batch_size):
        yield read_windows(split, starts[first : first + batch_size], sequence_length, reset_at_documents)


def evaluation_starts(
    split: Split, *, sequence_length: int, max_tokens: int | None = None, span: int | None = None
) -> np.ndarray:
    """(rows,) int64: places where the rows of ``evaluation_batches`` begin, in their order. Raises ValueError for a
    ``span`` that is no multiple of ``sequence_length``."""
    span = span or sequence_length
    if span % sequence_length:
        raise ValueError(f"a span of {span} tokens cannot be cut into windows of {sequence_length}")
    num_labels = len(split.tokens) - 1
    count = -(-num_labels // span)
    taken = count if max_tokens is None else min(count, max(1, max_tokens // span))
    spans = permute(np.arange(taken, dtype=np.int64), count, seed=0, epoch=0) * span
    starts = (spans[:, None] + np.arange(0, span, sequence_length)).ravel()
    return starts[starts < num_labels]


def pieces(documents: np.ndarray) -> np.ndarray:
    """Where the stretches begin that lie in one row and one document: places in (B, N) ``documents``, the document of
    each token, laid flat. Sums over them are ``np.add.reduceat(numbers.ravel(), places)``."""
    begins = np.ones(documents.shape, dtype=bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return np.flatnonzero(begins)


def documents_of(split: Split, starts: np.ndarray, length: int) -> np.ndarray:
    """(rows, length) int32: the document of each token of windows that begin at ``starts`` (rows,). What is predicted
    from a token counts for that token's document, so that each has its own end and no other's text."""
    places = starts[:, None] + np.arange(length)
    return (np.searchsorted(split.starts, places, side="right") - 1).astype(np.int32)


def read_windows(
    text: Split, starts: np.ndarray, length: int, reset_at_documents: bool, *, origins: np.ndarray | None = None
) -> Batch:
    """A batch whose row r reads ``length`` tokens from place ``starts[r]``.

    origins: (B,) places where the reading of each row began; positions count from there, or from a later document
    start if documents count. Default: ``starts``.
    """
    places = starts[:, None] + np.arange(length)
    if starts.max(initial=0) + length < len(text.tokens):
        ids = np.lib.stride_tricks.sliding_window_view(text.tokens, length + 1)[starts].astype(np.int64)
    else:
        ids = text.tokens[np.minimum(starts[:, None] + np.arange(length + 1), len(text.tokens) - 1)].astype(np.int64)
    begin = np.zeros_like(places)
    begin[:, 0] = starts if origins is None else origins
    resets = None
    if reset_at_documents:
        first = np.searchsorted(text.starts, starts, side="right") - 1
        inside = np.searchsorted(text.starts, starts + length) - 1 - first  # documents that begin behind a row's start
        row = np.repeat(np.arange(len(starts)), inside)
        place = text.starts[np.arange(len(row)) + np.repeat(first + 1 - np.cumsum(inside) + inside, inside)]
        begin[:, 0] = np.maximum(begin[:, 0], text.starts[first])
        begin[row, place - starts[row]] = place
        starts_here = np.zeros(places.shape, dtype=bool)
        starts_here[:, 0] = text.starts[first] == starts
        starts_here[row, place - starts[row]] = True
        resets = torch.from_numpy(starts_here) if starts_here.any() else None
    begin = np.maximum.accumulate(begin, axis=1)
    return Batch(
        inputs=torch.from_numpy(ids[:, :-1].copy()),
        labels=torch.from_numpy(ids[:, 1:].copy()),
        loss_mask=torch.from_numpy(places + 1 < len(text.tokens)),
        tokens=Tokens(positions=torch.from_numpy(places - begin), resets=resets),
    )
