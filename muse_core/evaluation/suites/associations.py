"""Recall of pairs of tokens: multi-query associative recall (Arora et al. 2023, "Zoology")."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from muse_core.errors import DataError
from muse_core.evaluation.held_out import held_out, interval
from muse_core.evaluation.scoring import Reader
from muse_core.evaluation.suites.subject import Subject

PAIRS = (4, 8, 16, 32, 64)
ROWS_PER_SAMPLE = 8
AT_ONCE = 32


def mqar_rows(subject: Subject) -> list[dict[str, Any]]:
    """Of a run that trains on such a task, accuracy on its held-out examples by length, as far as the task makes them.
    Of any other, accuracy by the number of pairs: distinct tokens of the text as keys and values, then every key once
    more in another order, each with its value behind it. ``chance``: of a model that names a value of the sequence."""
    return _of_task(subject) if subject.is_task else _in_context(subject)


def _of_task(subject: Subject) -> list[dict[str, Any]]:
    setup, split = subject.setup, subject.setup.recipe.evaluate.split
    rows: list[dict[str, Any]] = []
    for multiple in subject.lengths:
        length = subject.length * multiple
        try:
            batches = setup.held_out_batches(
                split, length, rows=subject.rows_at_once(length), tokens=max(subject.tokens, length)
            )
            found = held_out(setup.model, batches, setup.corpus.byte_lengths, setup.precision)
        except DataError as error:
            rows.append({"length": length, "skipped": str(error)})
            continue
        assert found is not None, "nothing interrupts it"
        low, high = interval(found.rows.correct.astype(float), found.rows.tokens, None)
        rows.append({
            "length": length, "accuracy": found.accuracy, "low": low, "high": high, "nats_per_token": found.loss,
            "questions": found.tokens, "samples": len(found.rows.tokens),
        })
    return rows


def pairs_of(known: np.ndarray, pairs: int, rows: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """ids (rows, 4 · pairs): k₁ v₁ … k_K v_K, then the same pairs in another order; and the places (rows, pairs) of the
    values that are asked for. ``known``: distinct tokens, at least 2 · pairs."""
    drawn = np.stack([random.choice(known, size=2 * pairs, replace=False) for _ in range(rows)]).reshape(rows, pairs, 2)
    again = np.stack([row[random.permutation(pairs)] for row in drawn])
    ids = np.concatenate((drawn.reshape(rows, -1), again.reshape(rows, -1)), 1)
    places = np.broadcast_to(2 * pairs + 1 + 2 * np.arange(pairs), (rows, pairs))
    return ids, places


def _in_context(subject: Subject) -> list[dict[str, Any]]:
    split = subject.split
    known = np.unique(np.asarray(split.tokens))
    known = known[known != split.separator].astype(np.int64)
    reader = Reader(subject.setup)
    rows: list[dict[str, Any]] = []
    for pairs in PAIRS:
        if 2 * pairs > len(known):
            rows.append({"pairs": pairs, "length": 4 * pairs, "skipped":
                         f"the text has {len(known)} different tokens, and {2 * pairs} are needed"})
            continue
        random = np.random.default_rng([subject.seed, pairs])
        ids, places = pairs_of(known, pairs, ROWS_PER_SAMPLE * subject.samples, random)
        nats, right = [], []
        for first in range(0, len(ids), AT_ONCE):
            loss, best = reader.losses(torch.from_numpy(ids[first : first + AT_ONCE]))
            # The losses are those of the tokens after the first.
            some = places[first : first + AT_ONCE] - 1
            nats.append(np.take_along_axis(loss.numpy(), some, 1))
            right.append(np.take_along_axis(best.numpy(), some, 1))
        hits = np.concatenate(right).sum(1)
        asked = np.full(len(hits), pairs)
        low, high = interval(hits.astype(float), asked, None)
        rows.append({
            "pairs": pairs, "length": 4 * pairs, "accuracy": float(hits.sum() / asked.sum()), "low": low, "high": high,
            "chance": 1 / pairs, "nats_per_token": float(np.concatenate(nats).mean()),
            "questions": int(asked.sum()), "samples": len(hits),
        })
    return rows
