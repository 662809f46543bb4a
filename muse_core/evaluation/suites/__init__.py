"""Suites of measures of a trained model, each a list of rows: plain dicts, as pandas and JSON take them. Imports no
torch."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from muse_core.errors import DataError, RecipeError
from muse_core.plugins.near import suggestion

if TYPE_CHECKING:
    from muse_core.evaluation.suites.subject import Subject

Rows = list[dict[str, Any]]


class Suite(NamedTuple):
    """One suite."""

    function: str
    """``"module:function"``, called with the subject; returns the rows."""
    needs_text: bool
    """Whether it cannot run where the data is a task."""
    what: str
    """One line for people."""


HERE = "muse_core.evaluation.suites"
SUITES = {
    "held-out": Suite(f"{HERE}.losses:held_out_rows", False, "loss and bits per byte at the training length"),
    "length": Suite(f"{HERE}.losses:length_rows", True, "bits per byte at the training length and longer ones"),
    "recall": Suite(f"{HERE}.losses:recall_rows", True, "loss where the bigram stood in the context before, and where "
                    "not"),
    "needles": Suite(f"{HERE}.needle_rows:needle_rows", True, "RULER's needle family over lengths and depths"),
    "mqar": Suite(f"{HERE}.associations:mqar_rows", False, "recall of pairs of tokens, by their number or by length"),
    "importance": Suite(f"{HERE}.importance:importance_rows", True, "signal to noise, energy and recency of fast "
                        "weights, and the share that the filter takes for noise"),
    "causality": Suite(f"{HERE}.causality:causality_rows", False, "the causality gate's checks with the weights of "
                       "now"),
    "cost": Suite(f"{HERE}.cost:cost_rows", False, "time, memory and state bytes per token, by length"),
}
"""By name, in the order in which they are shown."""


def chosen(names: str | None) -> list[str]:
    """The suites of a comma-separated list, all of them without one. Raises RecipeError for a name that is none."""
    if names is None:
        return list(SUITES)
    found = [name.strip() for name in names.split(",") if name.strip()]
    wrong = [f"{name!r} is no suite{suggestion(name, SUITES, 'there are')}" for name in found if name not in SUITES]
    if wrong or not found:
        raise RecipeError(wrong or f"no suite is named; there are {', '.join(SUITES)}")
    return list(dict.fromkeys(found))


def evaluate(
    subject: Subject, names: list[str], *, asked: bool = True, begins: Callable[[str], None] = lambda name: None
) -> dict[str, Rows]:
    """Suite → rows. One that the run has no text for raises DataError where it was ``asked`` for, and otherwise gives
    one row that says why it was left out. ``begins`` hears the name of each before it is measured."""
    results: dict[str, Rows] = {}
    for name in names:
        suite = SUITES[name]
        begins(name)
        if suite.needs_text and subject.is_task:
            reason = f"{name} needs text, and the run's data is a task: give one with --text, or leave {name} out"
            if subject.texts_would_not_do:
                reason = f"{name} needs text, and the tokens of this run's task stand for none: leave {name} out"
            if asked:
                raise DataError(reason)
            results[name] = [{"skipped": reason}]
            continue
        module, _, function = suite.function.partition(":")
        results[name] = getattr(import_module(module), function)(subject)
    return results
