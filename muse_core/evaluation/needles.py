"""Needles in text: sentences hidden at drawn places in a corpus's own text, and questions that need them. Imports no
torch.

The forms and their sentences are those of RULER (Hsieh et al. 2024, arXiv:2404.06654): single, multi-key, multi-value
and multi-query retrieval, and variable tracking. Where RULER asks for everything that the text holds, which a model can
answer without reading the question, there are needles of other keys besides, and only as many answers are read as were
asked for.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

KEYS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "jetty", "knoll", "larch",
    "maple", "north", "ocean", "pearl", "quartz", "ridge", "slate", "thorn", "umber", "vale", "willow", "zephyr",
)  # fmt: skip
RETRIEVE = (
    "Some special magic numbers are hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the numbers afterwards.\n"
)
NEEDLE = " One of the special magic numbers for {key} is: {value}."
ONE = (
    "\nWhat is the special magic number for {query} mentioned in the provided text? The special magic number for "
    "{query} mentioned in the provided text is"
)
SEVERAL = (
    "\nWhat are all the special magic numbers for {query} mentioned in the provided text? The special magic numbers "
    "for {query} mentioned in the provided text are"
)
TRACK = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n"
CHAINED = (
    "\nQuestion: Find all variables that are assigned the value {query} in the text above. Answer: According to the "
    "chain(s) of variable assignment in the text above, {count} variables are assigned the value {query}, they are: "
)


class Puzzle(NamedTuple):
    """What is hidden and asked in one row, as text."""

    before: str
    """Stands at the start."""
    needles: tuple[tuple[str, ...], ...]
    """By key; those of one key stand in this order. The first key's are asked for."""
    question: str
    """Ends where the answer begins."""
    answers: tuple[str, ...]
    ordered: bool
    """Whether the answers are due in their order."""
    pattern: str
    """Regular expression of one answer."""


def _numbers(random: np.random.Generator, count: int) -> list[str]:
    """Different ones, of seven digits."""
    return [str(1_000_000 + int(n)) for n in random.choice(9_000_000, size=count, replace=False)]


def _retrieval(random: np.random.Generator, *, keys: int, values: int = 1, queries: int = 1) -> Puzzle:
    names = [KEYS[i] for i in random.choice(len(KEYS), size=keys, replace=False)]
    numbers = np.array(_numbers(random, keys * values)).reshape(keys, values)
    needles = tuple(
        tuple(NEEDLE.format(key=name, value=value) for value in row) for name, row in zip(names, numbers)
    )
    asked = names[:queries]
    query = asked[0] if queries == 1 else ", ".join(asked[:-1]) + f" and {asked[-1]}"
    answers = tuple(str(value) for row in numbers[:queries] for value in row)
    question = (ONE if len(answers) == 1 else SEVERAL).format(query=query)
    return Puzzle(RETRIEVE, needles, question, answers, queries > 1, r"\d+")


def _tracking(random: np.random.Generator, *, chains: int, hops: int) -> Puzzle:
    letters = np.array(list(string.ascii_uppercase))
    names: dict[str, None] = {}
    while len(names) < chains * (hops + 1):
        names["".join(random.choice(letters, size=5))] = None
    table = np.array(list(names)).reshape(chains, hops + 1)
    values = _numbers(random, chains)
    needles = tuple(
        tuple(f" VAR {name} = {value if not i else f'VAR {row[i - 1]}'}." for i, name in enumerate(row))
        for row, value in zip(table, values)
    )
    question = CHAINED.format(query=values[0], count=hops + 1)
    return Puzzle(TRACK, needles, question, tuple(map(str, table[0])), False, r"\b[A-Z]{5}\b")


class Form(NamedTuple):
    """One task of the family."""

    make: Callable[[np.random.Generator], Puzzle]
    keys: int
    """Among which the question chooses. A model that ignores the question answers 1 / keys of the rows at most."""


FORMS = {
    "single": Form(lambda random: _retrieval(random, keys=1), 1),
    "multi-key": Form(lambda random: _retrieval(random, keys=4), 4),
    "multi-value": Form(lambda random: _retrieval(random, keys=4, values=2), 4),
    "multi-query": Form(lambda random: _retrieval(random, keys=4, queries=2), 4),
    "variable tracking": Form(lambda random: _tracking(random, chains=2, hops=4), 2),
}
"""By name."""


class Row(NamedTuple):
    """A puzzle as tokens."""

    ids: np.ndarray
    """(length,): text with needles, then the question."""
    puzzle: Puzzle
    depth: float
    """Where the first needle that is asked for stands: 0 at the start of the text, 1 at its end."""


def filler(tokens: np.ndarray, separator: int) -> np.ndarray:
    """Text to hide needles in: the tokens without separators. Raises ValueError when nothing is left."""
    text = tokens[tokens != separator]
    if not len(text):
        raise ValueError("needles need held-out text to lie in, and there is none")
    return text


def scatter(text: np.ndarray, pieces: Sequence[np.ndarray], places: Sequence[float]) -> tuple[np.ndarray, list[int]]:
    """``pieces`` inserted into ``text`` after so many of its tokens each, rounded down, and where each then begins.
    Drawn places that are no whole numbers leave open which of two between the same tokens is first."""
    parts, starts = [], [0] * len(pieces)
    used = size = 0
    for index in sorted(range(len(pieces)), key=lambda i: places[i]):
        place = int(places[index])
        parts += [text[used:place], pieces[index]]
        size += place - used
        starts[index] = size
        size += len(pieces[index])
        used = place
    return np.concatenate([*parts, text[used:]]), starts


def make_row(
    form: Form, tokenizer: Any, text: np.ndarray, length: int, depths: tuple[float, float], random: np.random.Generator
) -> Row | int:
    """A row of ``length`` tokens, or, where the needles and the question alone are longer, how long they are.

    text: see ``filler``; a stretch of it from a drawn place on is read, and a text that is too short is repeated.
    depths: the range in which the first needle asked for lies; the first needle of every other key lies anywhere, and
    the later ones of a key anywhere behind it.
    """
    puzzle = form.make(random)
    before, question = (np.asarray(tokenizer.encode(part)) for part in (puzzle.before, puzzle.question))
    pieces = [[np.asarray(tokenizer.encode(needle)) for needle in of_key] for of_key in puzzle.needles]
    room = length - len(before) - len(question) - sum(len(piece) for of_key in pieces for piece in of_key)
    if room < 0:
        return length - room
    start = int(random.integers(len(text)))
    around = np.take(text, np.arange(start, start + room), mode="wrap")
    places: list[float] = []
    for number, of_key in enumerate(pieces):
        # The same for every key, so that over all depths no key's needles stand out by where they lie.
        first = room * random.uniform(*(depths if number == 0 else (0.0, 1.0)))
        places += [first, *sorted(random.uniform(first, room, size=len(of_key) - 1))]
    context, _ = scatter(around, [piece for of_key in pieces for piece in of_key], places)
    return Row(np.concatenate((before, context, question)), puzzle, places[0] / max(room, 1))


def marked(puzzle: Puzzle, said: str) -> tuple[float, bool]:
    """The share of the answers that are among the first as many that ``said`` names, in their place where they are
    ordered, and whether all are."""
    first = re.findall(puzzle.pattern, said)[: len(puzzle.answers)]
    if puzzle.ordered:
        right = sum(one == due for one, due in zip(first, puzzle.answers))
    else:
        right = len(set(first) & set(puzzle.answers))
    return right / len(puzzle.answers), right == len(puzzle.answers)


def by_chance(hits: int, rows: int, chance: float) -> float:
    """Probability of ``hits`` or more in ``rows`` draws that each hit with ``chance``: the tail of the binomial."""
    return min(1.0, sum(math.comb(rows, k) * chance**k * (1 - chance) ** (rows - k) for k in range(hits, rows + 1)))
