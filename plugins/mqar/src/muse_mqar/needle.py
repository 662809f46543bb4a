"""Numbers hidden in English text, asked for at its end: recall over a distance, with real text between.

Letters: B examples, N tokens, K needles of an example.
"""

from __future__ import annotations

import functools
import hashlib
import math
from typing import Any

import attrs
import numpy as np
import torch

from muse_core.contracts import Batch, Tokens
from muse_core.errors import DataError
from muse_core.evaluation.needles import KEYS, scatter
from muse_mqar.options import NeedleOptions
from muse_mqar.source import SPLITS

NAMES = tuple(key for key in KEYS if len(key) == 5)
"""Keys of one length, so that all examples have as many tokens of text."""
STATEMENT, QUESTION = " The number of {} is {}.", "\nThe number of {} is {}"
PARTS = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
"""Of the text: held-out examples hide their needles in another part, though some passages come again."""


@functools.cache
def library_reference() -> np.ndarray:
    """Bytes of the topics that Python's own help holds: about 460 kilobytes of English about the language."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)


class Needle:
    """Bytes of text with K sentences " The number of KEY is NUMBER." in it, and at the end the same sentences again in
    another order, whose numbers' digits are the labels that count. A needle ends a drawn number of tokens before the
    questions begin, log-uniform between the two of ``distance``."""

    vocabulary_size = 256
    chance = math.log(10)  # a digit, whichever

    def __init__(self, options: NeedleOptions, context: Any):
        self.options = options

    def fingerprint(self) -> str:
        """Version of the generator, the text and every option."""
        digest = hashlib.sha256(library_reference().tobytes()).hexdigest()
        return f"needle/1/{digest}/{sorted(attrs.asdict(self.options).items())}"

    def examples(self, split: str, indices: np.ndarray, length: int) -> Batch:
        """``contracts.TaskSource``. Raises DataError for a length that does not hold needles, questions and the smaller
        distance."""
        rows = [self._row(split, int(index), length) for index in indices]
        ids = np.array([row for row, _ in rows], np.int64).reshape(len(rows), length + 1)
        counted = np.array([answers for _, answers in rows], bool).reshape(ids.shape)
        positions = torch.arange(length).expand(len(rows), length)
        return Batch(
            torch.from_numpy(ids[:, :-1].copy()),
            torch.from_numpy(ids[:, 1:].copy()),
            torch.from_numpy(counted[:, 1:].copy()),
            Tokens(positions),
        )

    def _row(self, split: str, index: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and which of them are digits of answers, each (N + 1,)."""
        options = self.options
        draw = np.random.Generator(np.random.Philox(key=[options.seed * len(SPLITS) + SPLITS.index(split), index]))
        keys = [NAMES[i] for i in draw.permutation(len(NAMES))[: options.needles]]
        numbers = ["".join(map(str, draw.integers(10, size=options.digits))) for _ in keys]
        facts = list(zip(keys, numbers, strict=True))
        pieces = [encoded(STATEMENT.format(*fact)) for fact in facts]
        questions = [encoded(QUESTION.format(*facts[i])) for i in draw.permutation(len(facts))]
        room = length + 1 - sum(map(len, pieces)) - sum(map(len, questions))
        nearest, farthest = options.distance
        if room < nearest:
            raise DataError(
                f"needle: {options.needles} needles at least {nearest} tokens back need sequences of "
                f"{length - room + nearest} tokens, not {length}"
            )
        back = np.exp(draw.uniform(math.log(nearest), math.log(min(farthest, room)), size=len(pieces)))
        first, last = (int(share * len(library_reference())) for share in PARTS[split])
        text = library_reference()[first:last]
        around = np.take(text, np.arange(room) + draw.integers(len(text)), mode="wrap")
        context, _ = scatter(around, pieces, (room - back).tolist())
        counted = [np.concatenate((np.zeros(len(one) - options.digits), np.ones(options.digits))) for one in questions]
        return np.concatenate((context, *questions)), np.concatenate((np.zeros(len(context)), *counted))


def encoded(text: str) -> np.ndarray:
    """Bytes as ids."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64)
