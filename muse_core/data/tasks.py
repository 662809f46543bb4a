"""A task in place of text: a source that makes its own examples, such as recall of pairs. Examples are functions of
split and index, so there is nothing to encode and no epoch ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import attrs
import numpy as np

from muse_core.contracts import Batch, TaskSource
from muse_core.data.permutation import data_step
from muse_core.data.token_files import Split
from muse_core.data.tokenizers import Numbers, Tokenizer
from muse_core.errors import DataError, RecipeError
from muse_core.recipe.schema import Data


@attrs.frozen(eq=False, kw_only=True)
class TaskCorpus:
    """Stands where a corpus of text would."""

    source: TaskSource
    tokenizer: Tokenizer
    digest: str
    splits: Mapping[str, Split] = {}
    notices: tuple[str, ...] = ()
    in_training: Mapping[str, float] = {}
    """Nothing is known: examples are made, not read."""

    @property
    def vocabulary_size(self) -> int:
        return self.source.vocabulary_size

    @property
    def byte_lengths(self) -> np.ndarray:
        """(vocabulary_size,) ones: what is called bits per byte is bits per counted token."""
        return np.ones(self.vocabulary_size, dtype=np.int64)

    @property
    def extent(self) -> str:
        return f"a task of {self.vocabulary_size:,} tokens"

    def split(self, name: str) -> Split:
        raise DataError(f"data: a task has no {name} text; leave out what reads text, such as monitors with needles")

    def held_out(self, split: str, *, sequence_length: int, batch_size: int, max_tokens: int) -> Iterator[Batch]:
        """The first ``max_tokens // sequence_length`` examples of a split, at least one."""
        count = max(1, max_tokens // sequence_length)
        for first in range(0, count, batch_size):
            yield self.source.examples(split, np.arange(first, min(count, first + batch_size)), sequence_length)


class TaskData:
    """The training examples in batches; like ``TrainingData`` a pure function of the step."""

    steps_per_epoch = float("inf")

    def __init__(self, corpus: TaskCorpus, *, seed: int, batch_size: int, sequence_length: int):
        self._source = corpus.source
        self._first = seed << 32
        self._batch_size = batch_size
        self._length = sequence_length

    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        """The batch of an optimiser step, (batch_size, sequence_length), on the CPU."""
        first = self._first + data_step(step, quarantine) * self._batch_size
        return self._source.examples("train", np.arange(first, first + self._batch_size), self._length)


def open_task(source: TaskSource, data: Data) -> TaskCorpus:
    """Raises RecipeError for an order that a task does not have."""
    if data.order == "streams":
        raise RecipeError('data.order: a task has separate examples and no streams - write "permuted"')
    digest = hashlib.sha256(f"task/{source.fingerprint()}".encode()).hexdigest()
    return TaskCorpus(source=source, tokenizer=Numbers(source.vocabulary_size), digest=digest)
