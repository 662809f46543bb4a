"""The stage ``fixed-point``.

Letters: N training tokens, S tokens of a step, D width, k iteration.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.contracts import Batch, Result, State, Tokens
from muse_core.data.batches import TrainingData
from muse_cvfp.asked import contextual
from muse_cvfp.checks import chosen_validation
from muse_cvfp.diversity import diversity
from muse_cvfp.model import Cvfp
from muse_cvfp.options import FixedPointOptions
from muse_cvfp.stream import Stream, before, sequential, sweep


class Slices(TrainingData):
    """The stream in slices, one a step and in order: step s reads slice s mod (N / S)."""

    def __init__(self, stream: Stream, size: int):
        self.stream, self.size = stream, size
        self.steps_per_epoch = self.count = -(-len(stream) // size)

    def batch(self, step: int, quarantine: Sequence[tuple[int, int]] = ()) -> Batch:
        """One row of up to S tokens; ``tokens.offset`` is the place of the first in the stream."""
        start = self.data_step(step, quarantine) % self.count * self.size
        chosen = slice(start, min(start + self.size, len(self.stream)))
        ids = self.stream.ids[None, chosen]
        resets = self.stream.resets[None, chosen]
        tokens = Tokens(torch.arange(ids.shape[1])[None], start, resets)
        return Batch(ids, self.stream.labels[None, chosen], torch.ones_like(resets), tokens)


@attrs.define(eq=False, kw_only=True)
class Convergence:
    """Counts the iterations in a row that have converged; iteration 1 repeats iteration 0 and never counts."""

    share: float
    patience: int
    streak: int = 0

    def see(self, iteration: int, by_difference: float, by_residual: float) -> None:
        """Shares of tokens under the threshold, between iterations and at frozen weights: both must reach it."""
        reached = iteration > 1 and min(by_difference, by_residual) >= self.share
        self.streak = self.streak + 1 if reached else 0

    @property
    def reached(self) -> bool:
        return self.streak >= self.patience


class Iteration:
    """The objective: (1 − w) MSE(C_k, C_{k−1}) + w · diversity over a slice, summed over its tokens.

    ``previous`` (N, D) is C_{k−1} and ``fresh`` (N, D) what is there of C_k; both belong to the checkpoint. Iteration 0
    is made at the first call: with the weights as loaded, and without an update.
    """

    def __init__(self, stream: Stream, options: FixedPointOptions):
        self.options = options
        self.stream = stream
        self.number = 1
        """k."""
        self.previous: Tensor | None = None
        self.fresh: Tensor | None = None
        self.convergence = Convergence(share=options.early_stop, patience=options.patience)

    @property
    def finished(self) -> bool:
        return self.convergence.reached

    def __call__(self, model: Any, batch: Batch, state: State) -> Result:
        model = contextual(getattr(model, "_orig_mod", model), "fixed-point")
        if self.previous is None or self.fresh is None:
            self.stream = self.stream.to(batch.inputs.device)
            self.previous = sequential(model, self.stream)
            self.fresh = self.previous.clone()
        start = batch.tokens.offset
        stop = start + batch.inputs.shape[1]
        given = before(model, self.stream, self.previous, start, stop, self.options.carry)
        contexts = model.next_context(given, model.embedded(batch.inputs[0]))
        differences = (contexts - self.previous[start:stop]).square().mean(-1)
        spread = diversity(contexts, self.options)
        weight, count = self.options.diversity_weight, stop - start
        total = count * ((1.0 - weight) * differences.mean() + weight * spread)
        self.fresh[start:stop] = contexts.detach().to(self.fresh.dtype)
        losses = {"fixed-point/mse": differences.detach().sum(), "fixed-point/diversity": spread.detach() * count}
        return Result(total, losses, self.turned(model) if stop == len(self.stream) else {}, None)

    @torch.no_grad()
    def turned(self, model: Cvfp) -> dict[str, Tensor]:
        """After the last slice: the metrics of iteration k, and on to the next."""
        assert self.previous is not None and self.fresh is not None
        difference = (self.fresh - self.previous).square().mean(-1)
        residual = sweep(model, self.stream, self.fresh, self.options.carry) - self.fresh
        by_difference = (difference < self.options.threshold).double().mean()
        by_residual = (residual.square().mean(-1) < self.options.threshold).double().mean()
        self.convergence.see(self.number, by_difference.item(), by_residual.item())
        metrics = {
            "fixed-point/iteration": difference.new_full((), float(self.number)),
            "fixed-point/difference": difference.mean(),
            "fixed-point/converged": by_difference,
            "fixed-point/residual": residual.norm() / self.fresh.norm(),
            "fixed-point/converged_at_frozen_weights": by_residual,
        }
        self.previous, self.number = self.fresh.clone(), self.number + 1
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {"iteration": self.number, "streak": self.convergence.streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number, self.convergence.streak = state["iteration"], state["streak"]

    def tensors(self) -> dict[str, Tensor]:
        """``optional_contracts.KeepsTensors``."""
        return {} if self.previous is None or self.fresh is None else {"previous": self.previous, "fresh": self.fresh}

    def load_tensors(self, tensors: Mapping[str, Tensor], device: Any) -> None:
        self.stream = self.stream.to(device)
        self.previous, self.fresh = (
            tensors[name].to(device, copy=True) if name in tensors else None for name in ("previous", "fresh")
        )


class FixedPoint:
    """Trains the blocks of the context network and c₀; token embeddings stay frozen."""

    def __init__(self, options: FixedPointOptions, context: Any):
        self.options = options
        self.setup = context

    @functools.cached_property
    def stream(self) -> Stream:
        """The training tokens."""
        train = self.setup.corpus.split("train")
        return Stream.of(train.tokens, train.starts, self.options.tokens)

    def settings(self, train: Any) -> Any:
        """``optional_contracts.OwnPlan``: one row of telemetry an iteration, no decay of weights that no data hold."""
        an_iteration = Slices(self.stream, self.options.slice).count  # of a short text fewer than of options.tokens
        steps = self.options.iterations * an_iteration
        return attrs.evolve(
            train,
            steps=steps,
            batch_size=1,
            micro_batch=None,
            learning_rate=self.options.learning_rate,
            warmup_steps=min(train.warmup_steps, max(1, steps // 10)),
            weight_decay=0.0,
            cuda_graph=False,
            log_every=an_iteration,
        )

    def batches(self, run: Path) -> Slices:
        """Raises DataError where the data policy is broken."""
        chosen_validation(self.setup, self.options)
        return Slices(self.stream, self.options.slice)

    def objective(self, model: Any, data: Any) -> Iteration:
        contextual(model, "fixed-point")
        return Iteration(self.stream, self.options)

    def trainable(self, name: str) -> bool:
        return name.startswith("context_blocks.") or (name == "start" and self.options.carry == "learned")

    def finish(self, model: Any) -> None:
        return None
