"""A task in place of text: a source that makes its own examples, such as recall of pairs. Examples are functions of
split and index, so there is nothing to encode and no epoch ends."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import attrs
import numpy as np

from muse_core.contracts import Batch, TaskSource
from muse_core.data.token_files import Split
from muse_core.data.tokenizers import Numbers, Tokenizer
from muse_core.errors import DataError, RecipeError
from muse_core.recipe.schema import Data

if TYPE_CHECKING:
    from muse_core.data.batches import TrainingData


CANARY = 1 << 32
"""Number of the canary's first example."""


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
    described: Mapping[str, None] = {}
    """Examples have no names."""
    is_text: ClassVar[bool] = False
    """Examples are no text: they have the length that they have, and nothing to count."""

    @property
    def vocabulary_size(self) -> int:
        return self.source.vocabulary_size

    @property
    def byte_lengths(self) -> np.ndarray:
        """(vocabulary_size,) ones: what is called bits per byte is bits per counted token."""
        return np.ones(self.vocabulary_size, dtype=np.int64)

    @property
    def chance(self) -> float | None:
        """Nats per counted token of a guess that knows the task and not the example; None when the source does not
        say."""
        chance = getattr(self.source, "chance", None)
        return None if chance is None else float(chance)

    @property
    def extent(self) -> str:
        return f"a task of {self.vocabulary_size:,} tokens"

    def split(self, name: str) -> Split:
        raise DataError(f"data: a task has no {name} text; leave out what reads text, such as monitors with needles")

    def training_data(self, *, seed: int, batch_size: int, sequence_length: int, **of_text: Any) -> TrainingData:
        """Examples in batches; order and document starts are of text."""
        from muse_core.data.batches import TaskData

        return TaskData(self, seed=seed, batch_size=batch_size, sequence_length=sequence_length)

    def held_out(
        self, split: str, *, sequence_length: int, batch_size: int, max_tokens: int, **of_text: Any
    ) -> Iterator[Batch]:
        """The first ``max_tokens // sequence_length`` examples of a split, at least one. The canary, a split that
        sources do not have, is examples of validation that no evaluation comes to."""
        count = max(1, max_tokens // sequence_length)
        split, start = ("validation", CANARY) if split == "canary" else (split, 0)
        for first in range(0, count, batch_size):
            numbers = np.arange(start + first, start + min(count, first + batch_size))
            yield self.source.examples(split, numbers, sequence_length)

    def held_out_documents(
        self, split: str, *, sequence_length: int, max_tokens: int, span: int | None = None
    ) -> np.ndarray:
        """(rows, N) int64: every example is independent and counts as a document."""
        rows = max(1, max_tokens // sequence_length)
        return np.broadcast_to(np.arange(rows)[:, None], (rows, sequence_length))


def open_task(source: TaskSource, data: Data) -> TaskCorpus:
    """Raises RecipeError for an order that a task does not have."""
    if data.order == "streams":
        raise RecipeError('data.order: a task has separate examples and no streams - write "permuted"')
    digest = hashlib.sha256(f"task/{source.fingerprint()}".encode()).hexdigest()
    return TaskCorpus(source=source, tokenizer=Numbers(source.vocabulary_size), digest=digest)
