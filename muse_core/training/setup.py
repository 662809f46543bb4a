"""From a checked recipe to everything a run needs: device, text, model, kernels, monitors."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from muse_core.build import build_model, construct, registered_use
from muse_core.component import Use, walk
from muse_core.contracts import Batch
from muse_core.data.batches import TrainingData, evaluation_batches, evaluation_starts
from muse_core.data.corpus import Corpus, open_corpus
from muse_core.data.documents import Report
from muse_core.data.tasks import TaskCorpus, TaskData
from muse_core.errors import Halted
from muse_core.evaluation.causality import Leak, exact_leak, own_precision_leak
from muse_core.evaluation.held_out import HeldOut, held_out
from muse_core.model.kernels import BoundKernels, ranked
from muse_core.model.plan import periods
from muse_core.model.precision import Precision, choose_device, choose_precision
from muse_core.recipe.schema import Recipe
from muse_core.training.monitor_context import MonitorContext

LONGEST_OWN_CHECK = 512
"""Tokens that the gate's check in the run's own precision reads at most."""


@attrs.frozen(kw_only=True)
class Setup:
    """What a recipe has become."""

    recipe: Recipe
    registry: Any
    precision: Precision
    corpus: Corpus | TaskCorpus
    model: nn.Module
    kernels: BoundKernels

    @property
    def periods(self) -> tuple[int, ...]:
        return periods(self.recipe.model.options)

    @property
    def stream_period(self) -> int:
        """Least common multiple of the periods."""
        return math.lcm(*self.periods) if self.periods else 1

    def training_data(self) -> TrainingData | TaskData:
        train, data = self.recipe.train, self.recipe.data
        if isinstance(self.corpus, TaskCorpus):
            return TaskData(
                self.corpus,
                seed=self.recipe.seed,
                batch_size=train.batch_size,
                sequence_length=train.sequence_length,
            )
        return TrainingData(
            self.corpus,
            seed=self.recipe.seed,
            batch_size=train.batch_size,
            sequence_length=train.sequence_length,
            order=data.order,
            reset_at_documents=data.reset_at_documents,
        )

    def held_out_batches(
        self, split: str, length: int, *, rows: int, tokens: int, span: int | None = None
    ) -> Iterator[Batch]:
        """Batches of at most ``rows`` sequences over the first ``tokens`` tokens of a split; see
        ``evaluation_batches``."""
        if isinstance(self.corpus, TaskCorpus):
            return self.corpus.held_out(split, sequence_length=length, batch_size=rows, max_tokens=tokens)
        return evaluation_batches(
            self.corpus.split(split),
            sequence_length=length,
            batch_size=rows,
            max_tokens=tokens,
            reset_at_documents=self.recipe.data.reset_at_documents,
            span=span,
        )

    def held_out_documents(self, split: str, length: int, *, tokens: int, span: int | None = None) -> np.ndarray:
        """(rows,) int64: number of the document in which each row of ``held_out_batches`` begins. Rows of one document
        are not independent; the examples of a task are, and each counts as a document."""
        if isinstance(self.corpus, TaskCorpus):
            return np.arange(max(1, tokens // length))
        text = self.corpus.split(split)
        starts = evaluation_starts(text, sequence_length=length, max_tokens=tokens, span=span)
        return np.searchsorted(text.starts, starts, side="right") - 1

    def evaluate(
        self, split: str, tokens: int, *, multiple: int = 1, interrupted: Callable[[], bool] = lambda: False
    ) -> HeldOut | None:
        """Held-out measures on the first ``tokens`` tokens of a split, at ``multiple`` × the training length."""
        train = self.recipe.train
        length, span = train.sequence_length * multiple, train.sequence_length * max(self.recipe.evaluate.lengths)
        rows = max(1, (train.micro_batch or train.batch_size) // multiple)
        batches = self.held_out_batches(split, length, rows=rows, tokens=tokens, span=span)
        documents = self.held_out_documents(split, length, tokens=tokens, span=span)
        return held_out(
            self.model, batches, self.corpus.byte_lengths, self.precision, documents=documents, interrupted=interrupted
        )

    def canary(self, sequences: int) -> Iterator[Batch]:
        """Batches of up to ``sequences`` sequences of the text on which monitors judge."""
        train = self.recipe.train
        return evaluation_batches(
            self.corpus.split("canary"),
            sequence_length=train.sequence_length,
            batch_size=train.micro_batch or train.batch_size,
            max_tokens=sequences * train.sequence_length,
            reset_at_documents=self.recipe.data.reset_at_documents,
        )

    def monitor_context(self, name: str) -> MonitorContext:
        """What a monitor of this name learns about the run."""
        return MonitorContext(
            name=name,
            seed=self.recipe.seed,
            sequence_length=self.recipe.train.sequence_length,
            batch_size=self.recipe.train.batch_size,
            tokenizer=self.corpus.tokenizer,
            validation=lambda: self.corpus.split("validation").tokens,
            canary=self.canary,
            warmup_steps=self.recipe.train.warmup_steps,
            checkpoint_every=self.recipe.checkpoint.every,
            kernels=self.kernels,
        )

    def monitors(self) -> list[tuple[Use, Any]]:
        """The recipe's monitors, built."""
        return [(use, construct(use, self.monitor_context(use.name))) for use in self.recipe.monitors]

    def causality_gate(self) -> None:
        """Both checks of the gate. Raises Halted naming the layer that leaks."""
        leak = self._exact_leak() or own_precision_leak(
            self.model,
            self.corpus.vocabulary_size,
            min(self.recipe.train.sequence_length, LONGEST_OWN_CHECK),
            self.precision,
            routed=any(use.kind == "router" for use in walk(self.recipe.model.options)),
        )
        if leak is not None:
            raise Halted(f"{leak}. Training would learn to read its own targets; nothing was trained.")

    def _exact_leak(self) -> Leak | None:
        backends = ranked(
            (use.name, construct(use, None)) for use in map(registered_use, self.registry.rows("kernel backend"))
        )
        copy, _ = build_model(
            self.recipe,
            self.registry,
            vocabulary_size=self.corpus.vocabulary_size,
            dtype="float64",
            backends=backends,
        )
        copy.load_state_dict(self.model.state_dict())
        width = getattr(self.recipe.model.options, "width", None)
        assert width is not None, "a model without a width cannot be given embeddings"
        return exact_leak(copy.double(), width, self.periods)


def set_up(recipe: Recipe, registry: Any, *, report: Report | None = None) -> Setup:
    """Prepare text and build the model. Raises RecipeError, DataError or PluginError."""
    device = choose_device(recipe.train.device)
    precision = choose_precision(device, recipe.train.precision)
    torch.manual_seed(recipe.seed)
    if recipe.deterministic:
        # cuBLAS reads it when it starts; without it every product of matrices on a GPU would be refused.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(recipe.deterministic)
    corpus = open_corpus(recipe.data, seed=recipe.data.split_seed, report=report)
    model, kernels = build_model(
        recipe, registry, vocabulary_size=corpus.vocabulary_size, device=device, dtype=precision.dtype
    )
    return Setup(recipe=recipe, registry=registry, precision=precision, corpus=corpus, model=model, kernels=kernels)
