"""``muse eval`` as a function: suites on finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muse_core.evaluation.suites import Rows, evaluate
from muse_core.evaluation.suites.subject import Subject, read_texts, split_of
from muse_core.training.trained import Say, open_trained, silent


def evaluate_run(
    run: Path,
    names: list[str],
    *,
    asked: bool = True,
    texts: Sequence[Path] = (),
    documents: str = "file",
    step: int | None = None,
    device: str | None = None,
    tokens: int = 65_536,
    samples: int = 4,
    seed: int = 0,
    say: Say = silent,
) -> dict[str, Any]:
    """``{"run", "step", "suites": {name: rows}}`` of a run directory. ``asked``: see ``suites.evaluate``.

    Raises StorageError when there is no trained run, DataError for text that cannot be used.
    """
    given = read_texts(texts, documents) if texts else None
    setup, at = open_trained(run, device=device, step=step, untrained=False, say=say)
    own = None if given is None else split_of(given, setup.corpus.tokenizer)
    subject = Subject(setup=setup, own=own, tokens=tokens, samples=samples, seed=seed)
    return {"run": str(run), "step": at, "suites": evaluate(subject, names, asked=asked)}


def table(results: Sequence[dict[str, Any]]) -> Rows:
    """All rows of several results in one list, each with its run, step and suite: what ``pandas.DataFrame`` takes."""
    return [
        {"run": one["run"], "step": one["step"], "suite": suite} | row
        for one in results for suite, rows in one["suites"].items() for row in rows
    ]
