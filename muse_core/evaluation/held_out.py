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
from muse_core.data.batches import to_device
from muse_core.errors import DataError
from muse_core.evaluation.cross_entropy import scored
from muse_core.metrics.accumulator import MetricAccumulator, combined, read
from muse_core.model.precision import Precision
from muse_core.parallel.one import ONE, Ranks

RESAMPLES = 1000


@attrs.frozen(kw_only=True, eq=False)
class Rows:
    """What each row of the evaluation batches gave, in their order; every array is (rows,)."""

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
    """The same by row, for comparisons in pairs."""
    metrics: Mapping[str, float] = {}
    """What the layers measured, reduced as in training."""

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

    ``byte_lengths`` (V,): UTF-8 bytes of each token. ``documents`` (rows,): the document of each row, None where every
    row is one of its own. Raises DataError when there is nothing to read.
    """
    nats: list[np.ndarray] = []
    sizes: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    correct: list[np.ndarray] = []
    carried = 0
    accumulator = MetricAccumulator()
    cut = False
    # Ranks among which the weights are divided read every batch together.
    first, step = (0, 1) if ranks.shards > 1 else (ranks.rank, ranks.size)
    with undisturbed(model), ranks.at_work("an evaluation"):
        for batch in itertools.islice(batches, first, None, step):
            if step == ranks.size and (cut := interrupted()):
                break
            there = to_device(batch, precision.device)
            with precision():
                output = model(there.inputs, None, there.tokens)
                losses, right = scored(model, output.hidden, there)
            carried = carried or numbers_a_row(output.state, len(batch.inputs))
            accumulator.add_result(Result(losses.sum(), {}, output.metrics, None), there.loss_mask.sum())
            nats.append(losses.double().sum(1).cpu().numpy())
            loss_mask = batch.loss_mask.numpy()
            sizes.append((byte_lengths[batch.labels.numpy()] * loss_mask).sum(1))
            counts.append(loss_mask.sum(1))
            correct.append(right.sum(1).cpu().numpy())
    numbers = (0.0, {}) if accumulator.tokens is None else accumulator.numbers()
    own = (cut, nats, sizes, counts, correct, numbers, carried)
    parts = ranks.exchange(own)[: ranks.size if step > 1 else 1]
    if any(part[0] for part in parts):
        return None
    nats, sizes, counts, correct = (_in_turn([part[place] for part in parts]) for place in range(1, 5))
    tokens = int(sum(part.sum() for part in counts))
    if tokens == 0:
        raise DataError("the held-out split has no tokens to score; give it more documents or a larger share")
    per_row, bytes_per_row = np.concatenate(nats), np.concatenate(sizes)
    low, high = interval(per_row / math.log(2), bytes_per_row, documents)
    per_document = np.concatenate(counts)
    if documents is not None:
        per_document = np.bincount(np.unique(documents, return_inverse=True)[1], per_document)
    total_bytes = int(bytes_per_row.sum())
    return HeldOut(
        loss=float(per_row.sum() / tokens),
        bits_per_byte=float(per_row.sum() / math.log(2) / max(total_bytes, 1)),
        low=low,
        high=high,
        documents=float(kish(per_document[per_document > 0])),
        tokens=tokens,
        bytes=total_bytes,
        accuracy=float(np.concatenate(correct).sum() / tokens),
        state_numbers=parts[0][6],
        rows=Rows(
            nats=per_row, tokens=np.concatenate(counts), bytes=bytes_per_row, correct=np.concatenate(correct)
        ),
        metrics={name: value for name, value in read(combined([part[5] for part in parts])).items() if "/" in name},
    )


def numbers_a_row(state: Any, rows: int) -> int:
    """Numbers of a state of so many rows that belong to one of them, with those that all share."""
    tensors = [leaf for leaf in tree_leaves(state) if isinstance(leaf, torch.Tensor)]
    return sum(one.numel() // rows if one.shape[:1] == (rows,) else one.numel() for one in tensors)


def _in_turn(dealt: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Batches that were dealt to ranks, in their order again."""
    most = max(map(len, dealt))
    return [of_rank[place] for place in range(most) for of_rank in dealt if place < len(of_rank)]


def interval(above: np.ndarray, below: np.ndarray, documents: np.ndarray | None) -> tuple[float, float]:
    """95 % bootstrap interval of Σ above / Σ below over rows (rows,), resampling documents with all their rows, with a
    fixed generator; draws of documents in which there is nothing to divide by are left out. Of a single document the
    rows are resampled: it has no spread of its own."""
    if documents is not None:
        assert len(documents) == len(above)
        place = np.unique(documents, return_inverse=True)[1]
    if documents is not None and place.max() > 0:
        above, below = np.bincount(place, above), np.bincount(place, below)
    draws = np.random.default_rng(0).multinomial(len(above), np.full(len(above), 1 / len(above)), size=RESAMPLES)
    sums, sizes = draws @ above, draws @ below
    ratios = sums[sizes > 0] / sizes[sizes > 0] if (sizes > 0).any() else sums
    return float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))
