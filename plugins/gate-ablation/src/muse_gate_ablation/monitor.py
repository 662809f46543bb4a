"""The gates monitor."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from muse_core.errors import DataError, RecipeError
from muse_core.training.monitor_context import MonitorContext
from muse_core.training.monitors import BudgetedProbe
from muse_gate_ablation.ablation import Worth, worth_of
from muse_gate_ablation.options import GateAblationOptions

GUESS = 16
"""Gates that a model is taken to have, until the first probe has measured what it costs."""
VERDICTS = ("useful", "idle", "harmful", "undecided")


class GateAblation(BudgetedProbe):
    """Measures every so many steps what each gate is worth, while that stays within the budget.

    Numbers of a probe, for each gate: ``<gate>/ablation`` and its standard error ``<gate>/error`` (nats per token),
    ``<gate>/entropy`` (bits), ``<gate>/load``; then ``useful``, ``idle``, ``harmful`` and ``undecided`` (how many
    gates, by two standard errors against ``worth``), ``seconds`` and ``share``. Always the same text.
    Source: mathematics §9.
    """

    def __init__(self, options: GateAblationOptions, context: MonitorContext):
        self.options = options
        self.context = context
        self.rows = max(2, -(-options.tokens // context.sequence_length))
        super().__init__(
            context.name,
            every=options.every,
            budget=options.budget,
            on_failure=options.failure,
            passes=(1 + GUESS) * self.rows / context.batch_size,
        )

    def check_model(self, model: Any) -> None:
        """Raises RecipeError when no module's name matches."""
        self._gates(model)

    def probe(self, model: Any) -> dict[str, float]:
        """Raises RecipeError when no module's name matches, DataError when there is too little held-out text."""
        gates = self._gates(model)
        with self.probe_budget.spending():
            text = self._text().to(next(model.parameters()).device)
            found = worth_of(model, gates, text, rows=self.context.batch_size)
        verdicts = {name: worth.verdict(self.options.worth) for name, worth in found.items()}
        if self.step >= self.options.after:
            self.failure = self._failure(found, verdicts)
        numbers = {f"{name}/{key}": value for name, worth in found.items() for key, value in worth._asdict().items()}
        counts = {one: float(sum(verdict == one for verdict in verdicts.values())) for one in VERDICTS}
        return numbers | counts | self.costs()

    def _gates(self, model: nn.Module) -> dict[str, nn.Module]:
        match = self.options.match
        found = {name: module for name, module in model.named_modules() if fnmatch.fnmatchcase(name, match)}
        if not found:
            names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
            raise RecipeError(
                f"the monitor {self.name} finds no gate: no module is named like {match!r}; there are "
                f"{', '.join(names[:3])} … - set match, or leave the monitor out"
            )
        return found

    def _text(self) -> Tensor:
        """(rows, sequence_length + 1) ids, the first held-out text."""
        length = self.context.sequence_length
        ids = np.asarray(self.context.validation()[: self.rows * length + 1])
        rows = (len(ids) - 1) // length
        if rows < 2:
            raise DataError(
                f"the monitor {self.name} needs two rows of {length} held-out tokens, and there are {len(ids)} tokens"
            )
        return torch.from_numpy(np.stack([ids[row * length : row * length + length + 1] for row in range(rows)])).long()

    def _failure(self, found: Mapping[str, Worth], verdicts: Mapping[str, str]) -> str:
        """Which gates are not worth their cost, in a sentence, or nothing."""
        said = [
            f"{verdicts[name]} gate {name} ({worth.ablation:+.4f} ± {worth.error:.4f} nats per token)"
            for name, worth in found.items()
            if verdicts[name] in ("idle", "harmful")
        ]
        return "; ".join(said)
