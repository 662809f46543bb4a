"""``muse eval`` as a function: suites on finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs

from muse_core.data.plain_text import read_texts
from muse_core.errors import RecipeError
from muse_core.evaluation.suites import Rows, evaluate
from muse_core.evaluation.suites.subject import Subject, split_of
from muse_core.training.trained import Say, open_trained, silent


def evaluate_run(
    run: Path,
    names: list[str],
    *,
    asked: bool = True,
    texts: Sequence[Path] = (),
    documents: str | None = None,
    step: int | None = None,
    device: str | None = None,
    tokens: int = 65_536,
    samples: int = 4,
    seed: int = 0,
    lengths: Sequence[int] = (),
    say: Say = silent,
    begins: Say = silent,
) -> dict[str, Any]:
    """``{"run", "step", "suites": {name: rows}}`` of a run directory. ``documents``: of ``texts``, a file by default.
    ``asked``, ``begins``: see ``suites.evaluate``;
    ``lengths`` in tokens, read beside the training length, in place of 2, 4 and 8 times that.

    Raises StorageError when there is no trained run, DataError for text that cannot be used, RecipeError for lengths
    that would not read one text, and for documents of no text.
    """
    if documents and not texts:
        raise RecipeError("--documents: says what a document of --text is - give --text with it, or leave it out")
    given = read_texts(texts, documents or "file") if texts else None
    setup, at = open_trained(run, device=device, step=step, untrained=False, say=say)
    own = None if given is None else split_of(given, setup.corpus.tokenizer)
    subject = Subject(setup=setup, own=own, tokens=tokens, samples=samples, seed=seed)
    if lengths:
        subject = attrs.evolve(subject, lengths=multiples(lengths, subject.length))
    return {"run": str(run), "step": at, "suites": evaluate(subject, names, asked=asked, begins=begins)}


def multiples(lengths: Sequence[int], training: int) -> tuple[int, ...]:
    """Multiples of the training length, 1 among them, from the least on. Raises RecipeError for lengths that windows of
    one text cannot have."""
    longest = max(lengths)
    problems = []
    for length in sorted(set(lengths)):
        wrong = None
        if length % training:
            wrong = f"is no multiple of the training length, {training} tokens - ask for a multiple"
        elif longest % length:
            wrong = f"does not divide the longest, {longest} - ask for lengths that do"
        if wrong:
            problems.append(f"--length {length}: {wrong}, so that all lengths read the same text")
    if problems:
        raise RecipeError(problems)
    return tuple(sorted({1, *(length // training for length in lengths)}))


def table(results: Sequence[dict[str, Any]]) -> Rows:
    """All rows of several results in one list, each with its run, step and suite: what ``pandas.DataFrame`` takes."""
    return [
        {"run": one["run"], "step": one["step"], "suite": suite} | row
        for one in results for suite, rows in one["suites"].items() for row in rows
    ]
