"""What is evaluated: a model with its tokenizer, and the text that it is asked about."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np

from muse_core.contracts import Batch
from muse_core.data.batches import documents_of, evaluation_batches, evaluation_starts
from muse_core.data.token_files import Split
from muse_core.data.tokenizer import Tokenizer
from muse_core.data.tokenizers import Numbers
from muse_core.errors import DataError


def split_of(texts: Sequence[str], tokenizer: Tokenizer) -> Split:
    """Texts as the tokens of a split, each a document. Raises DataError for the tokenizer of a task."""
    if isinstance(tokenizer, Numbers):
        raise DataError("the tokens of this run are those of a task and stand for no text: leave --text out")
    tokens: list[np.ndarray] = []
    starts, place = [], 0
    mark = np.array([tokenizer.separator], dtype=np.int64)
    for ids in tokenizer.encode_batch(list(texts)):
        starts.append(place)
        tokens += [mark, np.asarray(ids, dtype=np.int64)]
        place += 1 + len(ids)
    return Split(
        name="text", tokens=np.concatenate([*tokens, mark]), starts=np.array(starts, dtype=np.int64),
        separator=tokenizer.separator, num_bytes=sum(len(text.encode()) for text in texts),
    )


@attrs.frozen(kw_only=True, eq=False)
class Subject:
    """What a suite is called with."""

    setup: Any
    """The run's ``Setup``, its model with the weights to judge."""
    own: Split | None = None
    """Text that was given; None is the run's own held-out text."""
    tokens: int = 65_536
    """Held-out tokens to read at most, in each suite that reads text."""
    samples: int = 4
    """Rows of a cell of the needle map, and of eight times as many a row of mqar."""
    seed: int = 0
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    """Multiples of the training length."""

    @property
    def length(self) -> int:
        """Training length in tokens."""
        return int(self.setup.recipe.train.sequence_length)

    @property
    def tokenizer(self) -> Tokenizer:
        tokenizer: Tokenizer = self.setup.corpus.tokenizer
        return tokenizer

    @property
    def is_task(self) -> bool:
        """Whether there is no text."""
        return self.own is None and not self.setup.corpus.is_text

    @property
    def texts_would_not_do(self) -> bool:
        """Whether no text could be given either."""
        return isinstance(self.tokenizer, Numbers)

    @property
    def split(self) -> Split:
        """The text to read."""
        if self.own is not None:
            return self.own
        found: Split = self.setup.corpus.split(self.setup.recipe.evaluate.split)
        return found

    @property
    def where(self) -> str:
        """Name of the text, for rows."""
        return self.split.name if not self.is_task else str(self.setup.recipe.evaluate.split)

    def rows_at_once(self, length: int) -> int:
        """Rows of a batch at this length, as many tokens as a micro-batch of training has."""
        train = self.setup.recipe.train
        return max(1, (train.micro_batch or train.batch_size) * self.length // length)

    def windows(
        self, length: int, *, span: int | None = None
    ) -> tuple[Iterator[Batch], np.ndarray]:
        """Batches of the text in windows of ``length``, and the document of each of their tokens (rows, N)."""
        split = self.split
        if len(split.tokens) < 2:
            raise DataError("the text is empty; give at least one character")
        batches = evaluation_batches(
            split, sequence_length=length, batch_size=self.rows_at_once(length), max_tokens=self.tokens, span=span,
            reset_at_documents=self.setup.recipe.data.reset_at_documents,
        )
        starts = evaluation_starts(split, sequence_length=length, max_tokens=self.tokens, span=span)
        return batches, documents_of(split, starts, length)
