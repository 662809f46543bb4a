"""MUSE from Python: open a run, build a recipe, train one. ``muse_core.load``, ``build``, ``train`` and ``resume`` are
these."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from muse_core.contracts import Batch
from muse_core.data.tokenizer import Tokenizer
from muse_core.errors import DataError, RecipeError, StorageError
from muse_core.evaluation.activations import activations
from muse_core.evaluation.runs import table
from muse_core.evaluation.scoring import Reader, score
from muse_core.evaluation.suites import chosen, evaluate
from muse_core.evaluation.suites.subject import Subject, split_of
from muse_core.given import at_least, at_most, number, told, whole
from muse_core.given import path as path_of
from muse_core.given import texts as strings
from muse_core.given import tokens as tokens_of
from muse_core.metrics.console import Display
from muse_core.metrics.finished import NAME as SUMMARY
from muse_core.metrics.finished import read_summary
from muse_core.metrics.jsonl import own_rows
from muse_core.metrics.schema import EVENTS
from muse_core.metrics.standing import standing
from muse_core.model.flops import parameter_count
from muse_core.model.torch_defaults import own_defaults
from muse_core.recipe import Checked, read_recipe
from muse_core.recipe.check import check_source
from muse_core.recipe.reading import overridden
from muse_core.recipe.source import RecipeText
from muse_core.report.reading import read_run
from muse_core.report.tables import key_numbers
from muse_core.storage.canonical_json import numbers
from muse_core.training.objectives import NextToken
from muse_core.training.setup import Setup, set_up
from muse_core.training.trained import Say, initial_weights, open_trained, silent

MOST_STEPS = 2**40
"""Steps whose first token has a number in 64 bits, however many tokens they have."""

Recipe = str | os.PathLike[str] | Mapping[str, Any]
"""A recipe file, or its table."""


class Opened:
    """A model with its tokenizer; ``model, tokenizer = muse_core.load(run)`` takes the two apart."""

    def __init__(self, setup: Setup, *, path: Path | None = None, step: int = 0):
        self.setup = setup
        """Recipe, text, model and kernels, as the commands have them."""
        self.path = path
        """The run's directory; None for a model that was built."""
        self.step = step
        """Steps that the weights were trained for."""

    @property
    def model(self) -> nn.Module:
        """``model(ids, state, tokens)`` → ``contracts.ModelOutput``; in evaluation mode when it comes from ``load``."""
        return self.setup.model

    @property
    def tokenizer(self) -> Tokenizer:
        """``encode``, ``decode``, ``vocabulary_size``, ``separator``."""
        return self.setup.corpus.tokenizer

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.tokenizer))

    def __repr__(self) -> str:
        count = parameter_count(self.model)
        where = f"{self.path} at step {self.step}" if self.path else "untrained"
        return f"<{self.setup.recipe.name}: {count:,} parameters, {where}>"

    def _repr_html_(self) -> str:
        """For notebooks: the run's key numbers below its line."""
        told = f"<p>{escape(repr(self))}</p>"
        if self.path is None:
            return told
        try:
            numbers = key_numbers(read_run(self.path))
        except StorageError as error:
            return f"{told}<p>{escape(str(error))}</p>"
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in numbers)
        return f"{told}<table>{rows}</table>"

    @own_defaults()
    def generate(
        self, prompt: str, *, tokens: int = 200, temperature: float = 0.8, top_p: float = 1.0, top_k: int | None = None,
        seed: int = 0,
    ) -> str:
        """What follows ``prompt``, at most ``tokens`` tokens, without the prompt.

        temperature: spread of the draws; 0 takes the most likely token. top_p: draw from the smallest set of tokens
        with this probability; top_k: from that many of the most likely. An empty prompt starts a document, and a new
        one ends it. Raises ValueError for numbers out of range, TypeError for what is none.
        """
        at_least(1, tokens=tokens)
        at_least(0, seed=seed)
        at_most(2**63 - 1, seed=seed)
        if top_k is not None:
            whole("top_k", top_k)
        for name, value in (("temperature", temperature), ("top_p", top_p)):
            number(name, value)
        # The separator stands before every document.
        starts = isinstance(prompt, str) and not prompt and self.tokenizer.separator >= 0
        ids = [self.tokenizer.separator] if starts else self._ids(prompt)
        drawn = Reader(self.setup).draw(ids, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed)
        until = itertools.takewhile(lambda token: token != self.tokenizer.separator, drawn)
        return self.tokenizer.decode(itertools.islice(until, tokens))

    @own_defaults()
    def logits(self, text: str | Iterable[int]) -> Tensor:
        """(N, vocabulary) fp32 on the CPU: row i scores what follows the first i + 1 of the N tokens, read as one
        document. ``text``: text, or token ids. Raises DataError when there is none or an id is out of range."""
        reader = Reader(self.setup)
        ids = torch.tensor([self._ids(text)])
        return torch.cat([reader.logits(hidden)[0].cpu() for hidden, _ in reader.read(ids)])

    @own_defaults()
    def hidden_states(
        self, text: str | Iterable[int], modules: str | Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        """(N, D) fp32 on the CPU by name: ``embedding``, the residual stream after ``blocks.0``, ``blocks.1``, …, and
        ``hidden``, which the head reads. The text is read as by ``logits``: row i has seen the first i + 1 tokens.

        modules: other names, of ``model.named_modules()``: of a layer, as ``blocks.0.attention``, what it adds to the
        stream, of another module its output. Raises RecipeError for one that is not there or gives no value for each
        token, DataError as ``logits``.
        """
        names = [modules] if isinstance(modules, str) else None if modules is None else strings("modules", modules)
        return activations(self.setup, self._ids(text), names)

    @own_defaults()
    def score(self, text: str) -> dict[str, float | int]:
        """``bits_per_byte``, ``nats_per_token``, ``nats``, ``tokens`` and ``bytes`` of a text as one document, every
        token given all tokens before it. Raises DataError for an empty text."""
        if not isinstance(text, str):
            raise TypeError(f"a score is of a text, a str, and this is {type(text).__name__}")
        self._ids(text)
        if self.tokenizer.separator < 0:
            raise DataError("the tokens of this run are those of a task and stand for no text: use logits")
        return score(self.setup, text)._asdict()

    @own_defaults()
    def evaluate(
        self, suites: str | Iterable[str] | None = None, *, texts: Iterable[str] | None = None, tokens: int = 65_536,
        samples: int = 4,
    ) -> list[dict[str, Any]]:
        """The rows of ``muse eval``, a table for ``pandas.DataFrame``: ``suites`` in a list or apart by commas, by
        default all that the run allows; ``texts`` are documents to read in place of its held-out text. Raises
        RecipeError for an unknown suite, DataError for text that cannot be used, TypeError for one text in place of
        several and ValueError for fewer than 2 tokens or no sample."""
        at_least(2, tokens=tokens)
        at_least(1, samples=samples)
        names = chosen(suites if suites is None or isinstance(suites, str) else ",".join(strings("suites", suites)))
        if isinstance(texts, str):  # whose characters would be documents
            raise TypeError("texts are several documents: give one text in a list, as texts=[text]")
        given = None if texts is None else [one for one in strings("texts", texts) if one.strip()]
        if given == []:
            raise DataError("the texts are empty; give at least one character")
        own = None if given is None else split_of(given, self.tokenizer)
        subject = Subject(setup=self.setup, own=own, tokens=tokens, samples=samples)
        found = evaluate(subject, names, asked=suites is not None)
        return table([{"run": str(self.path or self.setup.recipe.name), "step": self.step, "suites": found}])

    @own_defaults()
    def batch(self, step: int) -> Batch:
        """The training batch of an optimiser step, counted from 0, on the model's device."""
        from muse_core.data.batches import to_device

        at_least(0, step=step)
        at_most(MOST_STEPS, step=step)
        return to_device(self.setup.training_data().batch(step), self.setup.precision.device)

    @own_defaults()
    def loss(self, batch: Batch) -> Tensor:
        """What training minimises, in nats per counted token, with the layers' own losses; for ``backward``."""
        if not isinstance(batch, Batch):
            raise TypeError(f"a loss is of a Batch, such as run.batch(0), not of {told(batch)}")
        with self.setup.precision():
            result = NextToken()(self.model, batch, None)
        return result.total / batch.loss_mask.sum()

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json of the run; what is not finite is a float again. Raises StorageError when there is none yet."""
        file = self._run / SUMMARY
        if not file.exists():
            raise StorageError(f"{file}: is not there - the run has not finished")
        return dict(read_summary(self._run))

    def records(self, event: str = "train") -> list[dict[str, Any]]:
        """Rows of metrics.jsonl as a table for ``pandas.DataFrame``: ``train``, ``eval``, ``final`` or ``probe``, with
        ``stage`` and ``step``. Steps that a rollback or a resumption took back are left out; what is not finite is a
        float again. Raises ValueError for another event."""
        if not isinstance(event, str) or event not in EVENTS:
            raise ValueError(f"event must be one of {', '.join(EVENTS)}, not {event!r}")
        rows = standing(own_rows(self._run / "metrics.jsonl"), own_rows(self._run / "events.jsonl"))
        return [numbers(row) for row in rows if row["event"] == event]

    @own_defaults()
    def report(self) -> Path:
        """Draw ``report.html`` and its pictures in the run's directory, with a sample of these weights, as ``muse
        report --model`` does; returns the page. Raises StorageError for a model without a run, RecipeError where
        vl-convert-python is missing."""
        from muse_core.report.reading import read_runs
        from muse_core.report.writing import make_contents, write_report

        make_contents(self._run, self.setup, self.step, cost=False)
        return write_report(read_runs([self._run]), self._run)

    @property
    def _run(self) -> Path:
        if self.path is None:
            raise StorageError("this model was built and not loaded: it has no run directory")
        return self.path

    def _ids(self, text: str | Iterable[int]) -> list[int]:
        if isinstance(text, str):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"the text is not Unicode text ({error})") from None
            ids = [int(token) for token in self.tokenizer.encode(text)]
        else:
            ids = tokens_of(text)
        if not ids:
            raise DataError("the text is empty; give at least one character")
        size = self.setup.corpus.vocabulary_size
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise DataError(f"token {wrong[0]} is not one of the model's, 0 to {size - 1}")
        return ids


@own_defaults(gradients=True)
def load(
    run: str | os.PathLike[str], *, step: int | None = None, device: str | None = None, say: Say = silent
) -> Opened:
    """The model and the tokenizer of a run directory, with its newest good weights or those of ``step``.

    No text is read before it is asked for. ``device``: auto, cpu, cuda or cuda:<index>; by default as the run's recipe
    says. ``say`` hears in sentences what differs from the run's lock. Raises StorageError where there is no run or no
    trained checkpoint, and RecipeError where what is installed would change its numbers.
    """
    path = path_of("run", run)
    if step is not None:
        whole("step", step)
    setup, at = open_trained(path, device=device, step=step, untrained=False, say=say)
    return Opened(setup, path=path, step=at)


@own_defaults(gradients=True)
def build(recipe: Recipe, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Opened:
    """The model of a recipe with the weights that it begins with, in training mode, for a loop of one's own.

    recipe: a file, or its table. overrides: as ``--set`` takes them, ``["train.steps=100"]``, or
    ``{"train.steps": 100}``. Raises RecipeError, DataError or PluginError.
    """
    checked = _checked(recipe, overrides)
    setup = set_up(checked.recipe, checked.registry)
    initial_weights(setup, Display(Console(quiet=True)))
    return Opened(setup)


@own_defaults(gradients=True)
def train(
    recipe: Recipe,
    overrides: Iterable[str] | Mapping[str, Any] = (),
    *,
    run_dir: str | os.PathLike[str] | None = None,
    quiet: bool = False,
) -> Opened:
    """Do what ``muse-run`` does and open what came of it: ``.summary`` and ``.records()`` have the numbers.

    run_dir: a new directory for the run, by default ``runs/<name>-<time>``. It is a run of one process: several are
    those of ``muse-run``. Raises as ``muse-run`` ends: RecipeError, StorageError, DataError, Halted, PluginError, or
    Interrupted by a signal.
    """
    # The commands import much that opening a run does not need.
    from muse_core.cli.launch import fresh
    from muse_core.cli.process import refuse_several_processes

    refuse_several_processes("muse_core.train")
    checked = _checked(recipe, overrides)
    display = Display(Console(quiet=True)) if quiet else None
    where = None if run_dir is None else path_of("run_dir", run_dir)
    folder = fresh(checked, None, where, allow_drift=False, display=display)
    return load(folder)


@own_defaults(gradients=True)
def resume(
    run: str | os.PathLike[str],
    *,
    steps: int | None = None,
    extend: int | None = None,
    restart: bool = False,
    device: str | None = None,
    allow_drift: bool = False,
    quiet: bool = False,
) -> Opened:
    """Do what ``muse-run --resume`` does and open what came of it: go on with an interrupted run, to ``steps`` steps in
    all, or ``extend`` steps beyond those that were planned; see docs/guide/how-to/resume.md.

    restart: begin again where its checkpoints are gone. allow_drift: also where plugins, versions or data differ from
    the lock. Raises as ``train``.
    """
    from muse_core.cli.launch import resumed
    from muse_core.cli.process import refuse_several_processes

    refuse_several_processes("muse_core.resume")
    if steps is not None and extend is not None:
        raise RecipeError("give steps, all steps of the run, or extend, further ones, not both")
    for name, value in (("steps", steps), ("extend", extend)):
        if value is not None and whole(name, value) < 1:
            raise RecipeError(f"{name}: must be at least 1, not {value}")
    display = Display(Console(quiet=True)) if quiet else None
    resumed(
        path_of("run", run), device=device, allow_drift=allow_drift, steps=steps, extend=extend, restart=restart,
        display=display,
    )
    return load(run, device=device)


def _checked(recipe: Recipe, overrides: Iterable[str] | Mapping[str, Any]) -> Checked:
    if isinstance(overrides, str):
        raise RecipeError(f"overrides: must be a list or a table, as [{overrides!r}]")
    given = [f"{key}={_written(value)}" for key, value in overrides.items()] if isinstance(overrides, Mapping) else (
        strings("overrides", overrides)
    )
    if isinstance(recipe, Mapping):
        source = overridden(RecipeText(copy.deepcopy(dict(recipe)), "<table>", {}), given)
        return check_source(source)
    return read_recipe(path_of("recipe", recipe), given)


def _written(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_written(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_written, value)) + "]"
    if isinstance(value, np.generic):  # np.float64 is a float that spells itself otherwise
        value = value.item()
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str | int | float):
        raise TypeError(f"overrides: {told(value)} has no form in a recipe")
    return repr(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
