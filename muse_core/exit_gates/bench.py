"""What the gates share: the recipe, its variants, and one training run that several of them look at."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from rich.console import Console
from torch import nn

from muse_core.building import build_model, construct, every_backend, registered_use
from muse_core.component import Use
from muse_core.errors import Halted
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import Records, read_rows
from muse_core.recipe import Checked, check_table, to_toml
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.locking import lock_of
from muse_core.training.run import Run
from muse_core.training.setup import Setup, set_up

FOREVER = 1e9
FINAL_TOKENS = 16_384
"""Held-out tokens at the end of the training run; the gates judge no model quality."""


class Thinned(Display):
    """Shows the steps that the recipe would have logged, where there is no bar: every one is recorded."""

    def __init__(self, display: Display, every: int):
        super().__init__(display.console)
        self.every = every

    def step(self, step: int, row: Mapping[str, float] | None) -> None:
        due = self._bar is not None or step % self.every == 0 or step in (1, self._total)
        super().step(step, row if due else None)


@attrs.frozen(kw_only=True)
class Trained:
    """A run that went to its end, or to where it was halted."""

    setup: Setup
    folder: Path
    halted: str
    """Why it ended early, or nothing."""

    def rows(self, event: str) -> list[dict[str, Any]]:
        """Rows of metrics.jsonl."""
        return [row for row in read_rows(self.folder / "metrics.jsonl") if row["event"] == event]

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Rows of events.jsonl."""
        return [row for row in read_rows(self.folder / "events.jsonl") if row["event"] in kinds]


class Bench:
    """Gives every gate what it needs, each thing made once."""

    def __init__(self, checked: Checked, folder: Path, display: Display, *, steps: int):
        self.checked = checked
        self.folder = folder
        self.display = display
        self.steps = steps
        self._setup: Setup | None = None
        self._trained: Trained | None = None

    @property
    def setup(self) -> Setup:
        """The recipe as given, built and untrained."""
        if self._setup is None:
            self._setup = set_up(self.checked.recipe, self.checked.registry)
        return self._setup

    @property
    def trained(self) -> Trained:
        """``steps`` steps of the recipe, every one of them recorded."""
        if self._trained is None:
            changes = {
                "train": {"steps": self.steps, "log_every": 1, "max_seconds": FOREVER},
                "evaluate": {"final_tokens": min(FINAL_TOKENS, self.checked.recipe.evaluate.final_tokens)},
                "stages": [{"use": "train"}],
            }
            shown = Thinned(self.display, self.checked.recipe.train.log_every)
            self._trained = self.train(self.variant(changes), "training", shown)
        return self._trained

    def variant(self, changes: Mapping[str, Any]) -> Checked:
        """The recipe with other values: tables are merged, everything else is replaced."""
        return check_table(_merged(self.checked.resolved, changes), self.checked.registry, self.checked.where)

    def train(self, checked: Checked, name: str, display: Display | None = None) -> Trained:
        """A run in a folder of its own. A halt is an answer; other MuseErrors are raised."""
        folder = self.folder / name
        display = display or Display(Console(quiet=True))
        setup = set_up(checked.recipe, checked.registry)
        resolved = to_toml(checked.resolved)
        halted = ""
        with RunDirectory.create(
            folder, source=resolved, recipe=resolved, lock=to_toml(lock_of(checked, setup).table),
            tokenizer=setup.corpus.tokenizer.to_json(),
        ) as directory:
            records = Records(folder)
            try:
                Run(setup, directory, records, display).go()
            except Halted as error:
                halted = str(error)
            finally:
                display.finish()
                records.close()
        return Trained(setup=setup, folder=folder, halted=halted)

    def exact_model(self, checked: Checked | None = None) -> nn.Module:
        """The untrained model in float64 on the CPU, by kernels that compute in it."""
        checked = checked or self.checked
        backends = every_backend(checked.recipe, checked.registry)
        size = self.setup.corpus.vocabulary_size
        model, _ = build_model(
            checked.recipe, checked.registry, vocabulary_size=size, dtype="float64", backends=backends
        )
        return model.double().eval()

    def monitor(self, name: str) -> tuple[Use, Any] | None:
        """A monitor of this name as the recipe has it, or with its defaults; None where it is not installed."""
        for use, monitor in self.trained.setup.monitors():
            if use.name == name:
                return use, monitor
        for row in self.checked.registry.rows("safety monitor"):
            if row.name == name:
                use = registered_use(row)
                return use, construct(use, self.trained.setup.monitor_context(name))
        return None

    def ids(self, rows: int, length: int) -> torch.Tensor:
        """(rows, length) of held-out text, or of tokens at random for a task, on the CPU."""
        corpus = self.setup.corpus
        if not corpus.is_text:
            return torch.randint(corpus.vocabulary_size, (rows, length), generator=torch.Generator().manual_seed(0))
        tokens = torch.as_tensor(self.setup.corpus.split("validation").tokens[: rows * length].astype("int64"))
        return tokens.repeat(-(-rows * length // len(tokens)))[: rows * length].view(rows, length)


def _merged(table: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(table))
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged
