"""Held-out loss, perplexity and bits per byte, with a bootstrap interval over documents."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from muse_core.comparison.ratio import kish
from muse_core.contracts import Batch, Result
from muse_core.data.batches import pieces, to_device
from muse_core.errors import DataError
from muse_core.evaluation.cross_entropy import scored
from muse_core.metrics.accumulator import MetricAccumulator, combined, read
from muse_core.model.precision import Precision
from muse_core.parallel.one import ONE, Ranks

RESAMPLES = 1000


@attrs.frozen(kw_only=True, eq=False)
class Rows:
    """What the evaluation batches gave in their order, by row and, where a row holds several documents, by document;
    every array is (pieces,)."""

    document: np.ndarray
    """int64: the document's number; the row's where none are given."""
    nats: np.ndarray
    """float64: summed over counted tokens."""
    tokens: np.ndarray
    """int64: counted tokens."""
    bytes: np.ndarray
    """int64: bytes that they stand for."""
    correct: np.ndarray
    """int64: counted tokens whose label has the highest score."""


@attrs.frozen(kw_only=True)
class HeldOut:
    """Metrics over held-out tokens. The document separator costs nats and has no bytes."""

    loss: float
    """Nats per token."""
    bits_per_byte: float
    low: float
    """2.5 % quantile of bits per byte over resampled documents."""
    high: float
    """97.5 % quantile. Of a single document its rows are resampled."""
    documents: float
    """As how many documents of equal size the text weighs (Kish 1965): few of them make an interval that is too narrow.
    """
    tokens: int
    bytes: int
    accuracy: float
    """Share of counted tokens whose label has the highest score."""
    state_numbers: int
    """What the model carries on after a row of the first batch: two models of unequal state are not equal."""
    rows: Rows = attrs.field(eq=False, repr=False)
    """The same by document, for comparisons in pairs."""
    metrics: Mapping[str, float] = {}
    """What the layers measured, reduced as in training."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """``low`` and ``high``; None of one window in one document, which has no spread."""
        return None if len(self.rows.document) < 2 else (self.low, self.high)

    @property
    def perplexity(self) -> float:
        """Per token."""
        return math.exp(min(self.loss, 700.0))


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the training mode and every random state come back afterwards."""
    training = model.training
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        try:
            yield
        finally:
            model.train(training)


def held_out(
    model: Any,
    batches: Iterable[Batch],
    byte_lengths: np.ndarray,
    precision: Precision,
    *,
    documents: np.ndarray | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    ranks: Ranks = ONE,
) -> HeldOut | None:
    """Read every batch once from a fresh state, by one of the ``ranks`` each. None when ``interrupted`` becomes true on
    the way, on any of them.

    ``byte_lengths`` (V,): UTF-8 bytes of each token. ``documents`` (rows, N): the document of each token, None where
    every row is one of its own. Raises DataError when there is nothing to read.
    """
    found: list[Rows] = []
    carried = 0
    accumulator = MetricAccumulator()
    cut = False
    # Ranks among which the weights are divided read every batch together.
    first, step = (0, 1) if ranks.shards > 1 else (ranks.rank, ranks.size)
    with undisturbed(model), ranks.at_work("an evaluation"):
        for batch, own in itertools.islice(_with_documents(batches, documents), first, None, step):
            if step == ranks.size and (cut := interrupted()):
                break
            there = to_device(batch, precision.device)
            with precision():
                output = model(there.inputs, None, there.tokens)
                losses, right = scored(model, output.hidden, there)
            carried = carried or numbers_a_row(output.state, len(batch.inputs))
            accumulator.add_result(Result(losses.sum(), {}, output.metrics, None), there.loss_mask.sum())
            loss_mask = batch.loss_mask.numpy()
            begins = pieces(own)
            of_tokens = {
                "nats": losses.double().cpu().numpy(), "tokens": loss_mask.astype(np.int64),
                "bytes": byte_lengths[batch.labels.numpy()] * loss_mask,
                "correct": right.cpu().numpy().astype(np.int64),
            }
            sums = {name: np.add.reduceat(values.ravel(), begins) for name, values in of_tokens.items()}
            found.append(Rows(document=own.ravel()[begins].astype(np.int64), **sums))
    numbers = (0.0, {}) if accumulator.tokens is None else accumulator.numbers()
    parts = ranks.exchange((cut, found, numbers, carried))[: ranks.size if step > 1 else 1]
    if any(part[0] for part in parts):
        return None
    in_turn = _in_turn([part[1] for part in parts])
    tokens = sum(int(one.tokens.sum()) for one in in_turn)
    if tokens == 0:
        raise DataError("the held-out split has no tokens to score; give it more documents or a larger share")
    rows = _joined(in_turn)
    low, high = interval(rows.nats / math.log(2), rows.bytes, rows.document)
    per_document = np.bincount(np.unique(rows.document, return_inverse=True)[1], rows.tokens)
    total_bytes = int(rows.bytes.sum())
    return HeldOut(
        loss=float(rows.nats.sum() / tokens),
        bits_per_byte=float(rows.nats.sum() / math.log(2) / max(total_bytes, 1)),
        low=low,
        high=high,
        documents=float(kish(per_document[per_document > 0])),
        tokens=tokens,
        bytes=total_bytes,
        accuracy=float(rows.correct.sum() / tokens),
        state_numbers=parts[0][3],
        rows=rows,
        metrics={name: value for name, value in read(combined([part[2] for part in parts])).items() if "/" in name},
    )


def numbers_a_row(state: Any, rows: int) -> int:
    """Numbers of a state of so many rows that belong to one of them, with those that all share."""
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return sum(one.numel() // rows if one.shape[:1] == (rows,) else one.numel() for one in tensors)


def _with_documents(batches: Iterable[Batch], documents: np.ndarray | None) -> Iterator[tuple[Batch, np.ndarray]]:
    """Every batch with the document of each of its tokens."""
    first = 0
    for batch in batches:
        shape = batch.labels.shape
        rows = np.arange(first, first + shape[0])
        own = np.broadcast_to(rows[:, None], shape) if documents is None else documents[rows]
        assert own.shape == shape, f"documents of {own.shape} for tokens of {tuple(shape)}"
        yield batch, own
        first += shape[0]


def _joined(found: Sequence[Rows]) -> Rows:
    names = [field.name for field in attrs.fields(Rows)]
    return Rows(**{name: np.concatenate([getattr(one, name) for one in found]) for name in names})


def _in_turn(dealt: Sequence[Sequence[Rows]]) -> list[Rows]:
    """Batches that were dealt to ranks, in their order again."""
    most = max(map(len, dealt))
    return [of_rank[place] for place in range(most) for of_rank in dealt if place < len(of_rank)]


def interval(above: np.ndarray, below: np.ndarray, documents: np.ndarray | None) -> tuple[float, float]:
    """95 % bootstrap interval of Σ above / Σ below over rows (rows,) or pieces of rows, resampling documents with all
    that is theirs, with a fixed generator; draws of documents in which there is nothing to divide by are left out. Of a
    single document the rows are resampled: it has no spread of its own."""
    if documents is not None:
        assert len(documents) == len(above)
        place = np.unique(documents, return_inverse=True)[1]
    if documents is not None and place.max() > 0:
        above, below = np.bincount(place, above), np.bincount(place, below)
    draws = np.random.default_rng(0).multinomial(len(above), np.full(len(above), 1 / len(above)), size=RESAMPLES)
    sums, sizes = draws @ above, draws @ below
    ratios = sums[sizes > 0] / sizes[sizes > 0] if (sizes > 0).any() else sums
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))
