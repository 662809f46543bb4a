"""The stage ``context-fixed``.

Letters: B rows, N tokens of a window, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch

from muse_core.contracts import Batch, Result, State
from muse_core.data.batches import TrainingData, read_windows
from muse_core.data.permutation import shuffled
from muse_core.data.token_files import Split
from muse_core.errors import DataError
from muse_core.evaluation.cross_entropy import cross_entropy
from muse_cvfp.asked import contextual
from muse_cvfp.options import ContextFixedOptions
from muse_cvfp.stored import stored_contexts

TOKENS_AT_ONCE = 1 << 16
"""Tokens of a chunk of C*: 64 MiB at D = 256."""


class Windows(TrainingData):
    """Windows of the first training tokens with their contexts, in an order that is a function of seed, epoch and
    index, as ``TextData`` reads them: each from fresh state. C* is opened, or made, at the first batch."""

    def __init__(self, setup: Any, model: Any, tokens: int, run: Path):
        train, data = setup.recipe.train, setup.recipe.data
        self.setup, self.model, self.run = setup, model, run
        self.text: Split = setup.corpus.split("train")
        self.seed, self.batch_size, self.length = setup.recipe.seed, train.batch_size, train.sequence_length
        self.resets = data.reset_at_documents
        self.count = min(tokens, len(self.text.tokens) - 1) // self.length
        if not self.count:
            raise DataError(
                f"context-fixed: {min(tokens, len(self.text.tokens) - 1)} tokens are less than one window of "
                f"{self.length} - raise context-fixed.tokens or lower train.sequence_length"
            )
        self.steps_per_epoch = self.count / self.batch_size
        self.contexts: np.ndarray | None = None

    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        """(B, N) with C* (B, N, D) as ``extra["contexts"]``, on the CPU."""
        if self.contexts is None:
            self.contexts = self.made()
        places = self.data_step(step, quarantine) * self.batch_size + np.arange(self.batch_size, dtype=np.int64)
        chosen = shuffled(places, self.count, seed=self.seed)
        contexts = torch.from_numpy(np.stack([self.contexts[window] for window in chosen]))
        return self.windows(chosen)._replace(extra={"contexts": contexts})

    def windows(self, numbers: np.ndarray) -> Batch:
        return read_windows(self.text, numbers * self.length, self.length, self.resets)

    def in_order(self) -> Iterator[Batch]:
        """Every window once, in chunks."""
        rows = max(1, TOKENS_AT_ONCE // self.length)
        for first in range(0, self.count, rows):
            yield self.windows(np.arange(first, min(first + rows, self.count)))

    def made(self) -> np.ndarray:
        identity = {
            "corpus": self.setup.corpus.digest,
            "resets": self.resets,
            "precision": self.setup.precision.dtype,
        }
        shape = (self.count, self.length, self.model.width)
        # By one process of several, which share the run's directory.
        return self.setup.ranks.first(
            lambda: stored_contexts(self.model, self.setup, self.run, identity, self.in_order(), shape)
        )


class NextTokenInContext:
    """The objective: cross-entropy of the next token from Head[C* ; token output]. C* is data: what it was made from
    is not part of the graph."""

    def __call__(self, model: Any, batch: Batch, state: State) -> Result:
        hidden = model.hidden(batch.extra["contexts"], model.embedded(batch.inputs))
        entropy = cross_entropy(model, hidden, batch)
        return Result(entropy, {"cross_entropy": entropy.detach()}, {}, None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class ContextFixed:
    """Trains the token network and the head."""

    def __init__(self, options: ContextFixedOptions, context: Any):
        self.options = options
        self.setup = context

    def settings(self, train: Any) -> Any:
        """``optional_contracts.OwnPlan``. Not recorded: ``train.cuda_graph`` is for the loss of plain text."""
        steps = train.steps if self.options.steps is None else self.options.steps
        return attrs.evolve(train, steps=steps, cuda_graph=False)

    def batches(self, run: Path) -> Windows:
        return Windows(self.setup, self.setup.model, self.options.tokens, run)

    def objective(self, model: Any, data: Any) -> NextTokenInContext:
        contextual(model, "context-fixed")
        return NextTokenInContext()

    def trainable(self, name: str) -> bool:
        return name.startswith(("token_blocks.", "head."))

    def finish(self, model: Any) -> None:
        return None
