"""One variant against another over runs in pairs: the same seed, data order and evaluated text in both.

Imports no torch.

Letters: S seeds, R evaluated rows, C documents.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from muse_core.errors import StorageError, typed
from muse_core.storage.canonical_json import numbers

STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % quantiles of Student's t with 1, 2, … degrees of freedom."""
NORMAL = 1.96
SAME = 1e-6
"""Relative difference that sums in another order, and the digits of a file, may make."""
FEW_DOCUMENTS = 40
"""Below so many documents of equal size a report says that more of them would narrow the interval."""


@attrs.frozen(kw_only=True)
class Paired:
    """How a variant compares with the baseline."""

    value: float
    """Geometric mean over seeds of the ratio of means, or mean difference of accuracies."""
    low: float | None
    high: float | None
    """95 % interval; see ``paired``. None for one seed and one document, which tell of no spread."""
    seeds: int
    by_seed: tuple[float, ...]
    documents: float
    """Documents of equal size that say as much as those read: (Σ size)² / Σ size² (Kish 1965)."""


@attrs.frozen(kw_only=True, eq=False)
class Measured:
    """What a run gave on each document, in one entry or several; every array is (R,)."""

    document: np.ndarray
    """(R,) int64."""
    above: np.ndarray
    """(R,) float64: nats, or hits."""
    below: np.ndarray
    """(R,) float64: bytes or tokens that they are spread over."""
    sources: Mapping[int, str] = {}
    """Document → the source that it is from; empty where the run does not tell."""
    exact: bool = True
    """Whether every token counts for its own document; in runs of earlier versions it does for the document in which
    the evaluated row begins, which may be of another source."""

    def of_source(self, source: str) -> Measured:
        """The rows of the documents of one source."""
        own = np.isin(self.document, [number for number, name in self.sources.items() if name == source])
        return attrs.evolve(self, document=self.document[own], above=self.above[own], below=self.below[own])

    def by_document(self) -> dict[int, float]:
        """Document → bytes or tokens read of it."""
        documents, place = np.unique(self.document, return_inverse=True)
        return dict(zip(documents.tolist(), np.bincount(place, self.below).tolist(), strict=True))


def read_rows(run: Path, measure: str, mean: float) -> Measured:
    """The rows of a finished run. Raises StorageError where it has none, some of another kind than runs write, or such
    as do not have the ``mean`` of the run's summary: a run that was extended and died while it measured has rows of its
    new end beside the summary of its old one."""
    file = run / "held_out.json"
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
        document = np.array([operator.index(number) for number in table["document"]], np.int64)
        above = _floats(table["hits" if measure == "accuracy" else "nats"])
        below = _floats(table["bytes" if measure == "bits_per_byte" else "tokens"])
        # Runs of earlier versions do not tell what their documents are called.
        sources = {int(number): str(one["source"]) for number, one in table.get("documents", {}).items()}
        if not 0 < len(document) == len(above) == len(below):
            raise ValueError(f"{len(document)} documents, {len(above)} numerators and {len(below)} denominators")
        if not (np.isfinite(below) & (below >= 0)).all() or below.sum() == 0:
            raise ValueError("there is nothing to divide by")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise StorageError(
            f"{file}: cannot be read ({error!r}) - restore it from a copy, or remove summary.json: muse-run --resume "
            f"{typed(run)} measures the run again"
        ) from None
    found = float(above.sum() / below.sum()) / (math.log(2) if measure == "bits_per_byte" else 1)
    if not np.isclose(found, mean, rtol=SAME, equal_nan=True):
        raise StorageError(
            f"{file}: its rows have {found:.6g} {measure.replace('_', ' ')} and summary.json {mean:.6g}, so that one "
            f"of them is not of this end of the run - remove summary.json: muse-run --resume "
            f"{typed(run)} measures it again"
        )
    return Measured(document=document, above=above, below=below, sources=sources, exact="by_document" in table)


def _floats(column: object) -> np.ndarray:
    """Numbers as JSON has them, NaN and infinities as texts. Raises TypeError for other values."""
    values = numbers(column)
    if not isinstance(values, list) or not all(type(one) in (int, float) for one in values):
        raise TypeError("a column holds something else than numbers")
    return np.array(values, float)


def other_text(own: Measured, theirs: Measured) -> str | None:
    """None where both read as much of every document, so that their rows are of the same text; otherwise what each
    read, in words."""
    if own.exact != theirs.exact:
        return "one of them by an earlier version, which counts a row of several documents for the first"
    read = [one.by_document() for one in (own, theirs)]
    if read[0] == read[1]:
        return None
    counts = (f"{sum(one.values()):,.0f} of {len(one)} document{'' if len(one) == 1 else 's'}" for one in read)
    return " and ".join(counts)


def paired(variant: dict[int, Measured], base: dict[int, Measured], *, ratio: bool) -> Paired:
    """Compare runs seed by seed; the keys are the seeds, and both need the same.

    The interval has two parts, added as independent ones are. Of the seeds: Student's t over the S paired values. Of
    the text: the jackknife over documents (Miller 1974), each left out with all its rows in both variants and all
    seeds, times Student's t with the degrees of freedom of ``freedom``. What it covers is measured in
    docs/decisions/intervals.md. With one seed there is only the text, which says nothing
    of the spread of training; with one document there is only the seeds; with one of each there is no interval. Ratios
    are treated as logarithms. The interval of a difference ends where the variant's accuracy would leave 0 to 1.
    """
    seeds = sorted(variant)
    assert seeds and seeds == sorted(base)
    documents = np.unique(np.concatenate([variant[seed].document for seed in seeds]))
    sums = [[_by_document(runs[seed], documents) for runs in (variant, base)] for seed in seeds]
    count = len(documents)
    values = _values(sums, np.ones((1, count)), ratio)[:, 0]
    sizes = sums[0][1][1]
    effective = float(kish(sizes))
    of_text = of_seeds = 0.0
    if effective > 1:
        without = _values(sums, np.ones((count, count)) - np.eye(count), ratio).mean(0)
        of_text = float(student(freedom(effective, without))) * math.sqrt((count - 1) * float(without.var()))
    if len(seeds) > 1:
        of_seeds = float(student(np.array(len(seeds) - 1))) * float(values.std(ddof=1)) / math.sqrt(len(seeds))
    mean, half = float(values.mean()), math.hypot(of_text, of_seeds)
    shown = math.exp if ratio else float
    known = effective > 1 or len(seeds) > 1
    low, high = mean - half, mean + half
    if not ratio:
        of_base = float(np.mean([above.sum() / max(below.sum(), 1) for _, (above, below) in sums]))
        low, high = max(low, -of_base), min(high, 1 - of_base)
    return Paired(
        value=shown(mean),
        low=shown(low) if known else None,
        high=shown(high) if known else None,
        seeds=len(seeds),
        by_seed=tuple(shown(float(value)) for value in values),
        documents=effective,
    )


def paired_by_source(variant: dict[int, Measured], base: dict[int, Measured], *, ratio: bool) -> dict[str, Paired]:
    """Source → the comparison on its documents alone, where the text is of several; see ``paired``. Empty where it is
    of one, or a run does not tell."""
    if not all(one.exact for one in (*variant.values(), *base.values())):
        return {}
    told = [set(one.sources.values()) for one in (*variant.values(), *base.values())]
    if any(names != told[0] for names in told) or len(told[0]) < 2:
        return {}
    return {
        source: paired(*({seed: one.of_source(source) for seed, one in of.items()} for of in (variant, base)),
                       ratio=ratio)
        for source in sorted(told[0])
    }


def told_interval(found: Mapping[str, Any]) -> str:
    """The interval of ``Paired``, as a table, in words; nothing where one document and one seed give none. Four digits,
    and more for a bound that they would round to 1 or 0: on which side of it a bound lies is what a verdict says."""
    return "" if found["low"] is None else f"{_bound(found['low'])} to {_bound(found['high'])}"


def _bound(value: float) -> str:
    told = (f"{value:.{digits}f}" for digits in range(4, 10))
    return next((one for one in told if value in (0, 1) or float(one) not in (0, 1)), f"{value:.4f}")


def with_interval(found: Mapping[str, Any]) -> str:
    """Value and interval of ``Paired`` as a table."""
    return ", ".join(part for part in (f"{found['value']:.4f}", told_interval(found)) if part)


def kish(sizes: np.ndarray) -> np.ndarray:
    """(…, C) sizes to (…): (Σ size)² / Σ size², as many of equal size weigh the same."""
    return np.square(sizes.sum(-1)) / np.square(sizes).sum(-1)


def freedom(effective: float | np.ndarray, without: np.ndarray) -> np.ndarray:
    """(…): degrees of freedom of a jackknife variance from the (…, C) values with each document left out: those of
    ``effective`` documents of equal size, or fewer where few documents move the value.

    These are (Σ d²)² / Σ d⁴ of the deviations d of the values. For normal ones of equal variance Satterthwaite (1946)
    has three times as many, C; a third of them is what the simulation asks for when effects follow length.
    """
    squares = np.square(without - without.mean(-1, keepdims=True))
    whole = squares.sum(-1)
    moved = np.divide(whole**2, np.square(squares).sum(-1), out=np.full_like(whole, np.inf), where=whole > 0)
    return np.minimum(effective, moved) - 1


def student(freedom: np.ndarray) -> np.ndarray:
    """97.5 % quantiles of Student's t for at least 1 degree of freedom: the table, linear in 1 / freedom between its
    entries; beyond it the expansion of Fisher and Cornish (1960)."""
    some = np.maximum(freedom, 1.0)
    inverse = 1 / np.arange(len(STUDENT), 0, -1)
    table = np.interp(1 / some, inverse, STUDENT[::-1])
    return np.where(some <= len(STUDENT), table, NORMAL + 2.372 / some + 2.82 / some**2)


def _by_document(run: Measured, documents: np.ndarray) -> np.ndarray:
    """(2, C): sums above and below over the rows of each document."""
    place = np.searchsorted(documents, run.document)
    return np.stack([np.bincount(place, part, minlength=len(documents)) for part in (run.above, run.below)])


def _values(sums: list[list[np.ndarray]], draws: np.ndarray, ratio: bool) -> np.ndarray:
    """(S, draws): log-ratio, or difference, of the means under each weighting of documents (draws, C)."""
    rows = []
    for variant, base in sums:
        one, other = ((draws @ part[0]) / np.maximum(draws @ part[1], 1) for part in (variant, base))
        rows.append(np.log(one) - np.log(other) if ratio else one - other)
    return np.stack(rows)
