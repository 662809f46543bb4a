"""The data policy: validation text whose every token occurs in training and that shares no 13 words in a row with it.

Documents are divided before tokenising by the corpus itself; this is about what different documents have in common.
Words, since 13 tokens may be anything from a word (bytes) to a paragraph.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np

from muse_core.data.token_files import Split
from muse_core.data.tokenizer import Tokenizer
from muse_core.errors import DataError

WORDS = 13
PASSAGE = 256
"""Tokens that are taken or left out together."""


class Seen:
    """What the training text holds: its tokens, and its runs of 13 words by hash."""

    def __init__(self, train: Split, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        counts = np.bincount(np.asarray(train.tokens), minlength=tokenizer.vocabulary_size)
        self.tokens = counts > 0
        self.number: dict[str, int] = {}
        hashes = [self._hashes(text, learn=True)[0] for text in _documents(train, tokenizer)]
        self.runs = np.unique(np.concatenate(hashes))

    def offence(self, ids: np.ndarray) -> str | None:
        """What in these tokens, read as one text, breaks the policy, or None."""
        unseen = ids[~self.tokens[ids]]
        if len(unseen):
            piece = self.tokenizer.decode_bytes([int(unseen[0])])
            return f"token {int(unseen[0])} ({piece!r}) does not occur in the training text"
        hashes, words = self._hashes(self.tokenizer.decode(ids), learn=False)
        shared = np.flatnonzero(np.isin(hashes, self.runs))
        if len(shared):
            passage = " ".join(words[shared[0] : shared[0] + WORDS])
            return f"the training text has the same {WORDS} words in a row: {passage!r}"
        return None

    def _hashes(self, text: str, *, learn: bool) -> tuple[np.ndarray, list[str]]:
        """(words − 12,) uint64, one of each run of 13 words, and the words. A word that training lacks has number 0."""
        words = text.split()
        if learn:
            for word in words:
                self.number.setdefault(word, len(self.number) + 1)
        numbers = np.array([self.number.get(word, 0) for word in words], dtype=np.uint64)
        count = max(0, len(words) - WORDS + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for place in range(WORDS):
            hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + numbers[place : place + count]
            hashes ^= hashes >> np.uint64(29)
        return hashes, words


@attrs.frozen(eq=False)
class Chosen:
    """Validation tokens that keep the policy."""

    tokens: np.ndarray
    """(n + 1,) the n tokens and one more that follows the last."""
    starts: np.ndarray
    """Places where text starts that does not continue what stands before it, 0 first."""
    left_out: tuple[str, ...] = ()
    """What was wrong with the passages that were left out."""


def choose(validation: Split, seen: Seen, count: int, *, refuse: bool) -> Chosen:
    """The first ``count`` validation tokens that keep the policy, in passages; one that breaks it is left out, or with
    ``refuse`` a DataError that names it.

    Raises DataError when there are too few.
    """
    runs: list[list[np.ndarray]] = []
    left_out: list[str] = []
    taken = 0
    for fresh, where, passage in _passages(validation):
        continues = bool(runs) and bool(runs[-1]) and not fresh
        # Words in a row may begin in the passage before.
        ids = np.concatenate((*(runs[-1][-1:] if continues else ()), passage))
        if offence := seen.offence(ids):
            if refuse:
                raise DataError(_sentence(where, offence))
            left_out.append(_sentence(where, offence))
            runs.append([])  # what follows continues nothing
            continue
        if fresh or not runs:
            runs.append([])
        runs[-1].append(passage)
        taken += len(passage)
        if taken > count:
            return _checked([run for run in runs if run], count, tuple(left_out), seen)
    raise DataError(
        f"the validation text has {taken} tokens that keep the data policy, fewer than the {count + 1} wanted: lower "
        f"fixed-point.validation_tokens, or raise data.validation"
        + (f". The first that was left out: {left_out[0]}" if left_out else "")
    )


def _checked(runs: list[list[np.ndarray]], count: int, left_out: tuple[str, ...], seen: Seen) -> Chosen:
    """The choice, after the policy has been asserted of it as a whole."""
    texts = [np.concatenate(run) for run in runs]
    for text in texts:
        if offence := seen.offence(text):
            raise DataError(_sentence("the validation text that was chosen", offence))
    starts = np.cumsum([0, *(len(text) for text in texts[:-1])])
    return Chosen(np.concatenate(texts)[: count + 1], starts[starts < count].astype(np.int64), left_out)


def _passages(split: Split) -> Iterator[tuple[bool, str, np.ndarray]]:
    """(whether a document starts, where it stands, tokens) of every passage in order."""
    ends = [*split.starts[1:].tolist(), len(split.tokens) - 1]
    for document, (start, end) in enumerate(zip(split.starts.tolist(), ends)):
        for place in range(start, end, PASSAGE):
            ids = np.asarray(split.tokens[place : min(place + PASSAGE, end)]).astype(np.int64)
            yield place == start, f"validation document {document}, token {place - start}", ids


def _documents(split: Split, tokenizer: Tokenizer) -> Iterator[str]:
    ends = [*split.starts[1:].tolist(), len(split.tokens) - 1]
    for start, end in zip(split.starts.tolist(), ends):
        yield tokenizer.decode(np.asarray(split.tokens[start:end]))


def _sentence(where: str, offence: str) -> str:
    return f"{where}: {offence} - validation must be text that training has not seen, in tokens that it has"
