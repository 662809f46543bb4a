"""Whether the runs of a plan can start, are measured on one text, and have models of one size. Builds each model once,
on the CPU, before any of them trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import attrs
import numpy as np

from muse_core.building import construct
from muse_core.comparison.cells import Cell, cell
from muse_core.comparison.plan import ComparisonPlan, Read, Value
from muse_core.comparison.ratio import Measured, other_text
from muse_core.comparison.runs import Comparison
from muse_core.data.batches import pieces
from muse_core.data.corpus import Corpus
from muse_core.data.tasks import TaskCorpus
from muse_core.errors import MuseError, RecipeError
from muse_core.model.flops import active_parameters
from muse_core.plugins.registry import Registry
from muse_core.recipe.check import check_source
from muse_core.recipe.lock import read_lock
from muse_core.recipe.reading import read_source
from muse_core.training.locking import input_digests, own_digests
from muse_core.training.setup import Setup, set_up


def count_parameters(read: Read, output: Path) -> dict[str, int]:
    """Variant → parameters, all or active as the plan says, with the recipe's own values. Raises RecipeError with every
    problem of every run that cannot start, the swept values tried in every variant, naming both, for a variant or value
    that would be measured on other text than the baseline, and for a finished run that has read what is gone now."""
    counts, problems, texts, inputs = {}, [], {}, {}
    trial = Trial(read.plan)
    for variant in read.plan.variants:
        without_value: list[str] = []
        for value in (None, *(read.plan.tune.values if read.plan.tune else ())):
            setting = "" if value is None or read.plan.tune is None else f" with {read.plan.tune.key}={value!r}"
            try:
                setup = trial.set_up(cell(read, output, variant, read.plan.seeds[0], value, tuning=False))
                inputs[variant.name, value] = own_digests(setup) | input_digests(setup.recipe, setup.registry)
                found = _unequal_time(setup) if value is None and read.plan.budget is not None else []
            except MuseError as error:
                found = error.problems if isinstance(error, RecipeError) else [str(error)]
            # What is wrong with the recipe itself is said once.
            problems += [f"variant {variant.name!r}{setting}: {one}" for one in found if one not in without_value]
            without_value = without_value if setting else found
            if found:
                continue
            texts[variant.name, value] = trial.evaluated(setup)
            if value is None:
                counts[variant.name] = (
                    active_parameters(setup.model) if read.plan.count == "active"
                    else sum(parameter.numel() for parameter in setup.model.parameters())
                )
    if not problems:
        problems = [*_other_texts(read.plan, texts), *_other_inputs(Comparison(read, output), inputs)]
    if problems:
        raise RecipeError(problems)
    return counts


class Trial:
    """Sets runs of a plan up; plugins of one [plugins] table are loaded once, and text of one [data] is opened once."""

    def __init__(self, plan: ComparisonPlan):
        self._plan = plan
        self._registries: dict[str, Registry] = {}
        self._corpora: dict[str, Corpus | TaskCorpus] = {}
        self._evaluated: dict[str, Evaluated] = {}
        self._built: dict[str, Setup] = {}

    def set_up(self, one: Cell) -> Setup:
        """The set-up of a run, that of the run before where only its training differs, with everything made that its
        first step needs. Raises MuseError."""
        source = read_source(one.recipe, (*one.overrides, "train.device=cpu"))
        listed = repr(source.table.get("plugins"))
        checked = check_source(source, self._registries.get(listed))
        self._registries[listed] = checked.registry
        parts = ((name, part) for name, part in checked.resolved.items() if name not in ("train", "seed", "evaluate"))
        key, data = repr([one.variant.name, *parts]), repr(checked.recipe.data)
        if key not in self._built:
            self._built.clear()  # one model at a time
            self._built[key] = set_up(checked.recipe, checked.registry, corpus=self._corpora.get(data))
            self._corpora[data] = self._built[key].corpus
        setup = attrs.evolve(self._built[key], recipe=checked.recipe)
        setup.training_data()
        setup.monitors()
        return setup

    def evaluated(self, setup: Setup) -> Evaluated:
        """What the reported runs of this set-up are measured on."""
        recipe = setup.recipe
        key = repr((recipe.data, recipe.evaluate, recipe.train.sequence_length))
        if key not in self._evaluated:
            self._evaluated[key] = _text(setup, self._plan)
        return self._evaluated[key]


def _unequal_time(setup: Setup) -> list[str]:
    """A sentence where the recipe does not train once for ``train.steps`` steps with a schedule of as many, which is
    what a budget of seconds sets."""
    if setup.recipe.train.schedule_steps is not None:
        return ["its recipe's train.schedule_steps follows from the budget of seconds - leave it out"]
    trained = []
    for use in setup.recipe.stages:
        stage = construct(use, setup)
        if hasattr(stage, "settings"):
            return [f"its stage {use.name!r} has steps of its own, which a budget of seconds does not decide - take it "
                    "out of stages, or leave the budget out"]
        if stage.objective(setup.model, setup.training_data) is not None:
            trained.append(use.name)
    if len(trained) > 1:
        return [f"its stages {', '.join(trained)} train for the budget's seconds each - leave one, or leave the budget "
                "out"]
    return []


class Evaluated(NamedTuple):
    """What the reported runs of a variant are measured on."""

    tokenizer: str
    """Its digest."""
    data: str
    """Digest of the text."""
    length: int
    """Tokens of a row."""
    rows: Measured
    """How much of each document; ``above`` is empty."""
    is_text: bool
    """Whether the data is text, not a task, whose tokens stand for no bytes."""


def _text(setup: Setup, plan: ComparisonPlan) -> Evaluated:
    evaluate, length = setup.recipe.evaluate, setup.recipe.train.sequence_length
    where = {"tokens": evaluate.final_tokens, "span": length * max(evaluate.lengths)}
    first = length * evaluate.lengths[0]
    weights = np.ones_like(setup.corpus.byte_lengths) if plan.measure != "bits_per_byte" else setup.corpus.byte_lengths
    sizes = [
        weights[batch.labels.numpy()] * batch.loss_mask.numpy()
        for batch in setup.held_out_batches(plan.split, first, rows=64, **where)
    ]
    documents = setup.held_out_documents(plan.split, first, **where)
    begins = pieces(documents)
    read = Measured(
        document=documents.ravel()[begins], above=np.zeros(0),
        below=np.add.reduceat(np.concatenate(sizes).ravel(), begins).astype(float),
    )
    return Evaluated(setup.corpus.tokenizer.digest, setup.corpus.digest, first, read, setup.corpus.is_text)


def _other_texts(plan: ComparisonPlan, texts: Mapping[tuple[str, Value | None], Evaluated]) -> list[str]:
    """A sentence for every variant, or swept value of a variant that is not refused already, whose runs would not be
    measured on the baseline's text."""
    base, baseline = texts[plan.baseline, None], f"the baseline {plan.baseline!r}"
    unit = "bytes" if plan.measure == "bits_per_byte" else "tokens"
    found: list[str] = []
    refused: set[str] = set()
    for (name, value), own in texts.items():
        if name in refused:
            continue
        told, count = f"variant {name!r}", len(found)
        if value is not None and plan.tune is not None:
            told = f"{told} with {plan.tune.key}={value!r}"
        before = f"{told} would be evaluated on"
        same_tokens = own.tokenizer == base.tokenizer
        if own.data != base.data and (same_tokens or not (own.is_text and base.is_text)):
            what = (
                f"reads other text than {baseline}" if own.is_text and base.is_text else
                f"has text and {baseline} a task" if own.is_text else
                f"has a task and {baseline} text" if base.is_text else f"has another task than {baseline}"
            )
            found.append(f"{told} {what} - give all one [data]")
        elif own.length != base.length:
            found.append(
                f"{before} rows of {own.length} tokens, and {baseline} on rows of {base.length} - give all one "
                "train.sequence_length and evaluate.lengths, in set of the plan"
            )
        elif other := other_text(own.rows, base.rows):
            found.append(
                f"{before} another stretch of text than {baseline} ({other}, in {unit}) - give all one "
                "evaluate.final_tokens, in set of the plan"
            )
        if value is None and len(found) > count:
            refused.add(name)
    return found


def _other_inputs(
    comparison: Comparison, inputs: Mapping[tuple[str, Value | None], Mapping[str, str]]
) -> list[str]:
    """A sentence for every finished run whose text, or other input, is not what further runs would read; ``inputs``:
    their digests now by variant and value."""
    found = []
    runs = comparison.runs()
    for one in (*runs.tuning, *runs.reported):
        if one.summary() is None:
            continue
        lock = one.path / "muse.lock.toml"
        if not lock.is_file():
            found.append(
                f"{one.path}: has no {lock.name}, which says what it has read - restore it from a copy, or remove this "
                "folder to repeat the run"
            )
            continue
        now, then = inputs[one.variant.name, one.value], read_lock(lock).table.get("digests", {})
        if other := [key for key in now if key in then and then[key] != now[key]]:
            found.append(
                f"{one.path}: read other input than the plan's runs would now ({_named(other)} of its lock), so that "
                "they could not be compared - bring it back as it was, choose another --output, or remove this folder "
                "to repeat the run"
            )
    return found


def _named(keys: Sequence[str]) -> str:
    return ", ".join(f"digests.{key}" for key in keys)


def departures(plan: ComparisonPlan, counts: dict[str, int]) -> list[str]:
    """A sentence for every variant whose size is too far from the baseline's; none under ``parameters = "any"``."""
    if plan.parameters == "any":
        return []
    base = counts[plan.baseline]
    quieter = "" if plan.parameters == "warn" else ', or say parameters = "warn"'
    return [
        f"variant {name!r} has {count:,} {plan.parameter_kind}, {count / base - 1:+.1%} against {base:,} of the "
        f"baseline {plan.baseline!r}, more than parameter_tolerance = {plan.parameter_tolerance:g} allows - change its "
        f"width, depth or multiples{quieter}"
        for name, count in counts.items()
        if abs(count / base - 1) > plan.parameter_tolerance
    ]
