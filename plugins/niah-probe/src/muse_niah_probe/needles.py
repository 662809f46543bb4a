"""Text with needles in it, and the question about one of them. Imports no torch.

Shapes: R rows, L tokens of context, Q tokens of a question, A tokens of an answer.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from muse_core.evaluation.needles import KEYS, filler, scatter

STATEMENT = " The pass code of the {key} room is "
QUESTION = "\nWhat opens the {key} room? The pass code of the {key} room is "
CANDIDATES = 32
"""Candidates drawn per needle, so that a tokenizer of variable length leaves enough of equal lengths."""
KEYS_PER_ROW = 4
"""Needles of a row, each with a key of its own: who ignores the key that is asked for is right in one of four rows."""


class Needles(NamedTuple):
    """Token ids of a probe."""

    context: np.ndarray
    """(R, L): text with needles in it."""
    question: np.ndarray
    """(R, Q): about the needle that is asked for; ends where the answer begins."""
    answer: np.ndarray
    """(R, A)."""
    other_question: np.ndarray
    """(R, Q): about another needle of the same row."""
    distance: float
    """Tokens from the end of the needle that is asked for to the question; mean over rows."""


def make_needles(
    tokenizer: Any, text: np.ndarray, *, rows: int, lead: int, distance: int, random: np.random.Generator
) -> Needles:
    """Hide four needles at drawn places among the first ``lead`` of each row's ``lead`` + ``distance`` tokens of
    ``text``, and ask for one, which any of them may be: the first no more often than the last.

    ``text`` holds token ids; separators are left out and a text that is too short is repeated. All rows have the same
    numbers of tokens. Raises ValueError for a text without tokens, or when the tokenizer leaves too few needles of
    equal lengths.
    """
    text = filler(text, tokenizer.separator)
    groups = _rows_of_facts(tokenizer, rows, random)
    contexts, distances = [], []
    for row, facts in enumerate(groups):
        start = row * max(len(text) // len(groups), 1)
        around = np.take(text, np.arange(start, start + lead + distance), mode="wrap")
        pieces = [np.concatenate((statement, answer)) for statement, answer, _ in facts]
        context, starts = scatter(around, pieces, random.uniform(0, lead + 1, size=len(facts)).tolist())
        contexts.append(context)
        distances.append(len(context) - starts[0] - len(pieces[0]))
    return Needles(
        context=np.stack(contexts),
        question=np.stack([facts[0][2] for facts in groups]),
        answer=np.stack([facts[0][1] for facts in groups]),
        other_question=np.stack([facts[1][2] for facts in groups]),
        distance=float(np.mean(distances)),
    )


Fact = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ids of statement, answer and question."""


def _rows_of_facts(tokenizer: Any, rows: int, random: np.random.Generator) -> list[list[Fact]]:
    """Four facts a row, all of equal lengths, with different keys in a row and different first keys where there are
    enough."""
    groups: dict[tuple[int, ...], dict[str, list[Fact]]] = defaultdict(lambda: defaultdict(list))
    for key in random.permutation([KEYS[i % len(KEYS)] for i in range(CANDIDATES * max(rows, KEYS_PER_ROW))]):
        number = str(random.integers(10_000, 100_000))
        parts = (STATEMENT.format(key=key), number, QUESTION.format(key=key))
        statement, answer, question = (np.asarray(tokenizer.encode(part)) for part in parts)
        groups[len(statement), len(answer), len(question)][str(key)].append((statement, answer, question))
    # A group with enough keys, and of these the one with the most facts.
    by_key = max(groups.values(), key=lambda group: (min(len(group), KEYS_PER_ROW), sum(map(len, group.values()))))
    if len(by_key) < KEYS_PER_ROW:
        raise ValueError(
            f"the tokenizer gives no {KEYS_PER_ROW} needles of equal lengths with different keys, so rows cannot be "
            "compared"
        )
    keys = list(by_key)
    found = []
    for row in range(rows):
        others = [keys[i] for i in random.permutation(len(keys)) if keys[i] != keys[row % len(keys)]]
        chosen = [keys[row % len(keys)], *others[: KEYS_PER_ROW - 1]]
        # Different numbers: those of a key are taken in turn by the rows that ask for it, the rest at random.
        facts = [by_key[chosen[0]][(row // len(keys)) % len(by_key[chosen[0]])]]
        for key in chosen[1:]:
            facts.append(by_key[key][int(random.integers(len(by_key[key])))])
        found.append(facts)
    return found
