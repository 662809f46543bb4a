"""The stage ``koopman-distil``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.nn import functional as F

from muse_core.contracts import Batch, Result, State, Tokens
from muse_core.data.batches import to_device
from muse_core.errors import RecipeError
from muse_core.evaluation.cross_entropy import cross_entropy, per_counted
from muse_core.evaluation.held_out import undisturbed
from muse_core.recipe.resolved import as_table
from muse_core.training.train_state import kept_weights
from muse_core.training.trained import open_trained
from muse_koopman.measure import Hamiltonians, drift
from muse_koopman.options import DistilOptions


class Imitate:
    """Cross-entropy + imitation · T² · KL(teacher ‖ student at temperature T) + spectral · W₁ of spectral measures a
    token. Stateless. Source: mathematics §7; Hinton, Vinyals and Dean 2015.

    The state, where it is carried, is that of both models.
    """

    def __init__(self, teacher: Any, options: DistilOptions):
        self.teacher = teacher
        self.options = options

    def __call__(self, model: Any, batch: Batch, state: State) -> Result:
        own, theirs = Hamiltonians(model), Hamiltonians(self.teacher)
        before = {} if state is None else state
        with torch.no_grad(), theirs():
            taught = self.teacher(batch.inputs, before.get("teacher"), batch.tokens)
        with own():
            output = model(batch.inputs, before.get("student"), batch.tokens)
        entropy = cross_entropy(model, output.hidden, batch)
        losses = {"cross_entropy": entropy} | per_counted(output.losses, batch)
        if self.options.imitation:
            losses["imitation"] = self.options.imitation * self.divergence(model, output.hidden, taught.hidden, batch)
        metrics = dict(output.metrics)
        if self.options.spectral:
            with torch.no_grad():
                due = theirs.measures()
            distance = drift(due, own.measures())
            if distance is not None:
                losses["spectral"] = self.options.spectral * distance * batch.loss_mask.sum()
                metrics["koopman/spectral_drift"] = distance.detach()
        total = torch.stack([value.to(entropy.dtype) for value in losses.values()]).sum()
        kept = {"student": output.state, "teacher": taught.state}
        return Result(total, {name: value.detach() for name, value in losses.items()}, metrics, kept)

    def state_after(self, model: Any, inputs: Tensor, state: State, tokens: Tokens) -> State:
        """``optional_contracts.Carries``."""
        before = {} if state is None else state
        pairs = (("student", model), ("teacher", self.teacher))
        return {name: one(inputs, before.get(name), tokens).state for name, one in pairs}

    def divergence(self, model: Any, hidden: Tensor, taught: Tensor, batch: Batch) -> Tensor:
        """T² Σ KL over counted tokens, row by row, so that a large vocabulary does not fill the memory."""
        temperature = self.options.temperature
        total = torch.zeros((), device=hidden.device)
        for row in range(len(hidden)):
            counted = batch.loss_mask[row]
            with torch.no_grad():
                due = softened(self.teacher.logits(taught[row]), temperature)
            found = softened(model.logits(hidden[row]), temperature)
            total = total + F.kl_div(found, due, log_target=True, reduction="none").sum(-1)[counted].sum()
        return temperature**2 * total

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


def softened(scores: Tensor, temperature: float) -> Tensor:
    """Logarithms of probabilities (…, V) at a temperature, in fp32 at least."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    return F.log_softmax(scores.to(wide) / temperature, dim=-1)


class Distil:
    """Trains every parameter of the compressed model; its integers stay. The end is kept as an architecture of its own,
    without the optimiser."""

    def __init__(self, options: DistilOptions, context: Any):
        self.options = options
        self.setup = context
        self._teacher: Any = None

    def settings(self, train: Any) -> Any:
        """``optional_contracts.OwnPlan``: its own update rule without decay, for so many steps. Neither compiled nor
        recorded: the layers of teacher and student are listened to."""
        options = self.options
        return attrs.evolve(
            train,
            steps=options.steps,
            schedule_steps=None,
            learning_rate=options.learning_rate,
            warmup_steps=min(train.warmup_steps, options.steps // 10),
            optimizer=options.optimizer,
            weight_decay=0.0,
            compile=False,
            cuda_graph=False,
        )

    def batches(self, run: Path) -> Any:
        return self.setup.training_data()

    def teacher(self) -> Any:
        """The model that was compressed, opened once. Raises as ``open_trained``, and RecipeError for what is no run or
        one with other tokens."""
        if sentence := self.refuse():
            raise RecipeError(f"koopman-distil: {sentence}")
        if self._teacher is None:
            opened, _ = open_trained(
                Path(self.options.teacher), device=str(self.setup.precision.device), untrained=False
            )
            if opened.corpus.tokenizer.digest != self.setup.corpus.tokenizer.digest:
                raise RecipeError(
                    f"koopman-distil.teacher: {self.options.teacher} has another tokenizer, so that it says nothing "
                    "about this model's tokens - name the run that was compressed"
                )
            self._teacher = opened.model.requires_grad_(False)
        return self._teacher

    def refuse(self) -> str | None:
        """``optional_contracts.Refuses``."""
        teacher = self.options.teacher
        if not (Path(teacher) / "recipe.toml").is_file():
            return f"teacher: {teacher} holds no run (it has no recipe.toml) - name the directory of a run"
        if self.setup.ranks.shards > 1:
            return ("layers are asked for their Hamiltonians beside their forward pass, where each process has a part "
                    "of their weights - set parallel.shard = 1")
        return None

    def objective(self, model: Any, data: Any) -> Imitate:
        return Imitate(self.teacher(), self.options)

    def trainable(self, name: str) -> bool:
        return True

    def measured(self) -> dict[str, Any]:
        """``optional_contracts.Measures``: drift of the spectral measure on validation text."""
        distance = held_out_drift(self.setup, self.setup.model, self.teacher())
        return {} if distance is None else {"distillation": [{"spectral_drift": distance}]}

    def finish(self, model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        return as_table(self.setup.recipe, self.setup.registry), kept_weights(model)


def held_out_drift(setup: Any, model: Any, teacher: Any, *, rows: int = 8) -> float | None:
    """Mean W₁ of spectral measures over layers, heads and ``rows`` validation rows; None for models without a
    Hamiltonian."""
    found = []
    length = setup.recipe.train.sequence_length
    own, theirs = Hamiltonians(model), Hamiltonians(teacher)
    with undisturbed(model), undisturbed(teacher), setup.precision():
        for batch in setup.held_out_batches("validation", length, rows=1, tokens=rows * length):
            piece = to_device(batch, setup.precision.device)
            with theirs():
                teacher(piece.inputs, None, piece.tokens)
            with own():
                model(piece.inputs, None, piece.tokens)
            distance = drift(theirs.measures(), own.measures())
            if distance is None:
                return None
            found.append(float(distance))
    return sum(found) / len(found) if found else None
