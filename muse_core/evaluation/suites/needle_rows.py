"""The needle family over lengths and depths."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from muse_core.errors import DataError
from muse_core.evaluation.needles import FORMS, Form, Row, by_chance, filler, make_row, marked
from muse_core.evaluation.scoring import Reader
from muse_core.evaluation.suites.subject import Subject

DEPTHS = 5
"""Equal parts of the text in which the needle that is asked for lies."""
LEVEL = 0.05
"""Probability with which a model that ignores the question is said to read it."""
SPARE = 8
"""Tokens said beyond those that the answers take."""
AT_ONCE = 8
"""Rows that are asked together."""
LONGEST = 64
"""Training lengths that are tried at most, where the needles do not fit into those asked for."""


def needle_rows(subject: Subject) -> list[dict[str, Any]]:
    """One row a form and length: ``recall``, RULER's mean share of answers found, ``exact``, the share of rows with
    all, ``by_depth`` the recall by where the needle lies, from the start to the end, and ``uses_key``: whether exact
    rows are more than a model gets that ignores the question (``chance``), at the 5 % level of the binomial; None for
    the single needle, which does not ask it."""
    rows = []
    for number, (name, form) in enumerate(FORMS.items()):
        fitting = [row for m in subject.lengths if "recall" in (row := _asked(subject, number, name, form, m))]
        if not fitting:
            multiple = 2 * max(subject.lengths)
            row = _asked(subject, number, name, form, multiple)
            while "recall" not in row and multiple < LONGEST:
                multiple *= 2
                row = _asked(subject, number, name, form, multiple)
            fitting = [row]
        rows += fitting
    return rows


def _asked(subject: Subject, number: int, name: str, form: Form, multiple: int) -> dict[str, Any]:
    length = subject.length * multiple
    try:
        text = filler(np.asarray(subject.split.tokens), subject.tokenizer.separator)
    except ValueError as error:
        raise DataError(str(error)) from None
    random = np.random.default_rng([subject.seed, number, length])
    made: list[tuple[int, Row]] = []
    for depth in range(DEPTHS):
        for _ in range(subject.samples):
            row = make_row(form, subject.tokenizer, text, length, (depth / DEPTHS, (depth + 1) / DEPTHS), random)
            if isinstance(row, int):
                return {"form": name, "length": length, "skipped": f"needles and question take {row} tokens"}
            made.append((depth, row))
    marks = _marks(subject, [row for _, row in made])
    by_depth = [float(np.mean([mark for (d, _), (mark, _) in zip(made, marks) if d == depth]))
                for depth in range(DEPTHS)]
    hits = sum(whole for _, whole in marks)
    chance = 1 / form.keys
    lucky = by_chance(hits, len(made), chance) if form.keys > 1 else None
    return {
        "form": name, "length": length, "recall": float(np.mean([mark for mark, _ in marks])),
        "exact": hits / len(made), "chance": chance, "by_chance": lucky,
        "uses_key": None if lucky is None else lucky <= LEVEL, "by_depth": by_depth, "samples": len(made),
    }


def _marks(subject: Subject, rows: list[Row]) -> list[tuple[float, bool]]:
    reader, tokenizer = Reader(subject.setup), subject.tokenizer
    found = []
    for first in range(0, len(rows), AT_ONCE):
        some = rows[first : first + AT_ONCE]
        count = SPARE + max(len(tokenizer.encode(" " + ", ".join(row.puzzle.answers))) for row in some)
        said = reader.greedy(torch.from_numpy(np.stack([row.ids for row in some]).astype(np.int64)), count)
        found += [marked(row.puzzle, tokenizer.decode(ids.tolist())) for row, ids in zip(some, said)]
    return found
