"""What text costs: at the training length, at longer ones, and by whether the bigram stood in the context before."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from muse_core.comparison.ratio import FEW_DOCUMENTS, Measured, paired
from muse_core.contracts import Batch
from muse_core.data.batches import evaluation_starts, pieces, to_device
from muse_core.errors import DataError
from muse_core.evaluation.cross_entropy import scored
from muse_core.evaluation.held_out import HeldOut, held_out, interval, undisturbed
from muse_core.evaluation.suites.subject import Subject

Row = dict[str, Any]


def _measured(subject: Subject, length: int, span: int | None = None) -> HeldOut:
    """Held-out measures in windows of ``length``; see ``Subject.windows``."""
    setup = subject.setup
    if subject.is_task:
        split = setup.recipe.evaluate.split
        rows = subject.rows_at_once(length)
        batches = setup.held_out_batches(split, length, rows=rows, tokens=subject.tokens)
        documents = setup.held_out_documents(split, length, tokens=subject.tokens)
    else:
        batches, documents = subject.windows(length, span=span)
    # What is given as text needs nothing of the run's own.
    sizes = setup.corpus.byte_lengths if subject.is_task else subject.tokenizer.byte_lengths
    found = held_out(setup.model, batches, sizes, setup.precision, documents=documents)
    assert found is not None, "nothing interrupts it"
    return found


def _row(subject: Subject, length: int, found: HeldOut) -> Row:
    """``interval_by`` says what was resampled: windows, where there is but one document; ``bits_per`` what
    ``bits_per_byte`` counts by, a counted token in a task."""
    documents = len(np.unique(found.rows.document))
    low, high = found.interval or (None, None)
    return {
        "text": subject.where, "length": length, "bits_per_byte": found.bits_per_byte,
        "low": low, "high": high,
        "interval_by": (
            "nothing, there is one window" if found.interval is None else "documents" if documents > 1 else "windows"
        ),
        "nats_per_token": found.loss, "perplexity": found.perplexity, "accuracy": found.accuracy,
        "tokens": found.tokens, "bytes": found.bytes, "documents": documents,
        "few_documents": found.documents < FEW_DOCUMENTS, "bits_per": "token" if subject.is_task else "byte",
    }


def held_out_rows(subject: Subject) -> list[Row]:
    """One row, of the windows that the run's own evaluation reads. For a task bits per byte are bits per counted
    token. Of text also ``words`` and ``word_perplexity``; see ``by_words``."""
    span = subject.length * max(subject.setup.recipe.evaluate.lengths)
    found = _measured(subject, subject.length, span)
    row = _row(subject, subject.length, found)
    if not subject.is_task:
        row |= by_words(found, subject, span)
    return [row]


def by_words(found: HeldOut, subject: Subject, span: int) -> Row:
    """``words`` of the text that was scored and ``word_perplexity``, e to the nats of all its tokens over that number.

    Words are what white space parts, and one more for the end of each line, as the tokens of WikiText are counted
    (245,569 in the test split of either size, where 241,211 are not ends of lines). So the figure does not depend on
    the tokenizer, and compares with those of models of words where the whole split was read.
    """
    split, tokenizer, length = subject.split, subject.tokenizer, subject.length
    starts = evaluation_starts(split, sequence_length=length, max_tokens=subject.tokens, span=span)
    # In the order of the text, since a word may go from one window to the next.
    tokens = np.concatenate([split.tokens[start + 1 : start + 1 + length] for start in np.sort(starts)])
    documents = np.split(tokens, np.flatnonzero(tokens == tokenizer.separator))
    texts = [tokenizer.decode([int(token) for token in one if token != tokenizer.separator]) for one in documents]
    words = sum(len(text.split()) + text.count("\n") for text in texts)
    nats = float(found.rows.nats.sum())
    # e to a power beyond 700 is no float.
    perplexity = math.exp(min(nats / words, 700.0)) if words else None
    return {"words": words, "word_perplexity": perplexity}


def length_rows(subject: Subject) -> list[Row]:
    """One row a length, all of the same text, in windows that start from nothing. ``ratio``: bits per byte over those
    at the training length, with the interval of ``comparison.ratio.paired`` over documents."""
    span = subject.length * max(subject.lengths)
    rows: list[Row] = []
    base: Measured | None = None
    for multiple in subject.lengths:
        length = subject.length * multiple
        if length > len(subject.split.tokens) - 1 and rows:
            rows.append({"text": subject.where, "length": length, "skipped":
                         f"the text has {len(subject.split.tokens) - 1} tokens"})
            continue
        found = _measured(subject, length, span)
        measured = Measured(
            document=found.rows.document, above=found.rows.nats, below=found.rows.bytes.astype(float)
        )
        row = _row(subject, length, found)
        if base is None:
            base = measured
        else:
            ratio = paired({0: measured}, {0: base}, ratio=True)
            row |= {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        rows.append(row)
    return rows


def seen_before(batch: Batch) -> np.ndarray:
    """(B, N) bool: whether the token and its label stood next to each other earlier in the row's document."""
    first, second = batch.inputs.numpy().astype(np.int64), batch.labels.numpy().astype(np.int64)
    size = int(max(first.max(), second.max())) + 1
    resets = batch.tokens.resets
    document = np.zeros_like(first) if resets is None else resets.numpy().cumsum(1)
    codes = (document * size + first) * size + second
    found = np.zeros(first.shape, dtype=bool)
    for row, code in enumerate(codes):
        _, begins, inverse = np.unique(code, return_index=True, return_inverse=True)
        found[row] = begins[inverse] < np.arange(len(code))
    return found


def recall_rows(subject: Subject) -> list[Row]:
    """Two rows a length: tokens whose bigram stood earlier in the same window and document, which a model can recall,
    and the others, which it must know (Arora et al. 2023, "Zoology")."""
    setup = subject.setup
    rows = []
    for length in sorted({subject.length, subject.length * max(subject.lengths)}):
        batches, documents = subject.windows(length, span=subject.length * max(subject.lengths))
        first, document = 0, []
        nats: dict[bool, list[np.ndarray]] = {True: [], False: []}
        counts: dict[bool, list[np.ndarray]] = {True: [], False: []}
        with undisturbed(setup.model):
            for batch in batches:
                there = to_device(batch, setup.precision.device)
                with setup.precision():
                    output = setup.model(there.inputs, None, there.tokens)
                    losses, _ = scored(setup.model, output.hidden, there)
                each = torch.as_tensor(losses).double().cpu().numpy()
                own = documents[first : first + len(each)]
                first, begins = first + len(each), pieces(own)
                document.append(own.ravel()[begins])
                seen, counted = seen_before(batch), batch.loss_mask.numpy()
                for repeated in (True, False):
                    which = (seen == repeated) & counted
                    nats[repeated].append(np.add.reduceat((each * which).ravel(), begins))
                    counts[repeated].append(np.add.reduceat(which.ravel().astype(np.int64), begins))
        total = sum(int(part.sum()) for parts in counts.values() for part in parts)
        of_pieces = np.concatenate(document)
        several = len(np.unique(of_pieces)) > 1
        for repeated in (True, False):
            above, below = np.concatenate(nats[repeated]), np.concatenate(counts[repeated])
            tokens = int(below.sum())
            row: Row = {
                "text": subject.where, "length": length, "bigram": "seen before" if repeated else "new",
                "nats_per_token": float(above.sum() / tokens) if tokens else None, "low": None, "high": None,
                "tokens": tokens, "share": tokens / max(total, 1), "documents": len(np.unique(of_pieces)),
            }
            if tokens and several:
                row["low"], row["high"] = interval(above, below, of_pieces)
            rows.append(row)
    if not any(row["tokens"] for row in rows):
        raise DataError("the text has no tokens to score; give at least two")
    return rows
