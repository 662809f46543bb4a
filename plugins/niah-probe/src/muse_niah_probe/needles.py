"""Text with a needle in it, and the question about the needle. Imports no torch.

Shapes: R rows, L tokens of context, Q tokens of a question, A tokens of an answer.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

KEYS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch",
    "maple", "north", "ocean", "pearl", "quartz", "ridge", "slate", "thorn", "umber", "vale", "willow", "zephyr",
)  # fmt: skip
STATEMENT = " The pass code of the {key} room is "
QUESTION = "\nWhat opens the {key} room? The pass code of the {key} room is "
CANDIDATES = 32
"""Candidates drawn per needle, so that a tokenizer of variable length leaves enough of equal lengths."""


class Needles(NamedTuple):
    """Token ids of a probe."""

    context: np.ndarray
    """(R, L): text, needle, text."""
    question: np.ndarray
    """(R, Q): ends where the answer begins."""
    answer: np.ndarray
    """(R, A)."""
    distance: int
    """Tokens from the end of the needle to the question."""


def make_needles(
    tokenizer: Any, text: np.ndarray, *, rows: int, lead: int, distance: int, random: np.random.Generator
) -> Needles:
    """Hide one needle per row after ``lead`` tokens of ``text`` and follow it by ``distance`` tokens more.

    ``text`` holds token ids; separators are left out and a text that is too short is repeated. All rows have the same
    numbers of tokens. Raises ValueError for a text without tokens, or when the tokenizer leaves fewer than two needles
    of equal lengths.
    """
    text = text[text != tokenizer.separator]
    if not len(text):
        raise ValueError("the needle probe needs held-out text, and there is none")
    pairs = _pairs(tokenizer, rows, random)
    contexts = []
    for row, (statement, answer, _) in enumerate(pairs):
        start = row * max(len(text) // len(pairs), 1)
        around = np.take(text, np.arange(start, start + lead + distance), mode="wrap")
        contexts.append(np.concatenate((around[:lead], statement, answer, around[lead:])))
    return Needles(
        context=np.stack(contexts),
        question=np.stack([question for _, _, question in pairs]),
        answer=np.stack([answer for _, answer, _ in pairs]),
        distance=distance,
    )


def _pairs(tokenizer: Any, rows: int, random: np.random.Generator) -> list[tuple[np.ndarray, ...]]:
    """(statement, answer, question) ids of ``rows`` needles with different keys where there are enough keys."""
    groups: dict[tuple[int, ...], list[tuple[np.ndarray, ...]]] = defaultdict(list)
    keys = [KEYS[i % len(KEYS)] for i in range(CANDIDATES * rows)]
    for key in random.permutation(keys):
        number = str(random.integers(10_000, 100_000))
        parts = (STATEMENT.format(key=key), number, QUESTION.format(key=key))
        ids = tuple(np.asarray(tokenizer.encode(part)) for part in parts)
        groups[tuple(len(part) for part in ids)].append(ids)
    largest = max(groups.values(), key=len)
    if len(largest) < 2:
        raise ValueError("the tokenizer gives no two needles of equal lengths, so rows cannot be compared")
    return _varied(largest)[:rows]


def _varied(pairs: list[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
    """The same pairs, those with a key not seen before first."""
    first: dict[bytes, int] = {}
    for index, (statement, _, _) in enumerate(pairs):
        first.setdefault(statement.tobytes(), index)
    fresh = list(first.values())
    return [pairs[i] for i in fresh + sorted(set(range(len(pairs))) - set(fresh))]
