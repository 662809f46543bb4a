"""What a run has done so far, kept as it happens: its records are read once, when an attempt begins."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from muse_core.metrics.jsonl import own_rows

KEYS_OF_WEIGHTS = (
    "source", "copied", "initialised", "unfit", "left", "perplexity_before", "perplexity_after"
)
"""Keys of the event of converted weights that ``summary.json`` repeats."""


class RunSummary:
    """Filled by every row of metrics and events: those of earlier attempts from their files, then each as it comes."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}
        """Stage → wall clock of its loop over all attempts, the stage that trained last at the end; NaN where it is not
        known."""
        self.recorded: dict[int, int] = {}
        """Stage → step of its last row of training."""
        self.tokens: dict[int, int] = {}
        """Stage → target tokens of its updates; rows of an earlier version do not tell."""
        self.last_step = 0
        """Step of the last row of training."""
        self.probes: dict[str, dict[str, Any]] = {}
        """Monitor → the numbers of its last probe, with their step."""
        self.weights: dict[str, Any] | None = None
        """What became of another model's weights the last time; None when there were none."""
        self.incidents: list[Mapping[str, Any]] = []
        """Rows of rollbacks."""
        self.foreign: dict[str, list[int]] = {}
        """File → lines, from 1, of its rows that this run did not write."""
        self._evaluated: dict[int, set[int]] = {}

    def read(self, path: Path) -> Iterator[Mapping[str, Any]]:
        """The rows of a file of records, each taken in as it passes. Nothing where there is no file yet."""
        foreign: list[int] = []
        take = self.event if path.name == "events.jsonl" else self.row
        for row in own_rows(path, foreign):
            take(row)
            yield row
        if foreign:
            self.foreign[path.name] = foreign

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics."""
        event, stage = row.get("event"), row.get("stage", 0)
        if "step" in row:
            # A row from before an evaluated step, as after a rollback, makes that evaluation void.
            known = self._evaluated.setdefault(stage, set())
            known.difference_update([step for step in known if step > row["step"]])
            if event == "eval":
                known.add(row["step"])
        if event == "train":
            before, now = self.seconds.pop(stage, 0.0), float(row.get("seconds", 0.0))
            self.seconds[stage] = math.nan if math.isnan(before + now) else max(before, now)
            self.recorded[stage] = row["step"]
            if type(row.get("train_tokens")) is int:
                self.tokens[stage] = row["train_tokens"]
            self.last_step = row["step"]
        elif event == "probe":
            found: dict[str, dict[str, Any]] = {}
            for key, value in row.items():
                monitor, slash, number = key.partition("/")
                if slash:
                    found.setdefault(monitor, {"step": row["step"]})[number] = value
            self.probes |= found

    def event(self, row: Mapping[str, Any]) -> None:
        """A row of events."""
        if row.get("event") == "incident":
            self.incidents.append(row)
        elif row.get("event") == "weights":
            self.weights = {key: row[key] for key in KEYS_OF_WEIGHTS if key in row}

    def seconds_until(self, stage: int, step: int, log_every: int) -> float:
        """Wall clock of this stage's loop up to ``step``; NaN where rows of it are missing, so that the time is not
        known."""
        last = max(step - step % log_every, min(step, 1))  # the first step has a row too
        return self.seconds.get(stage, 0.0) if self.recorded.get(stage, 0) >= last else math.nan

    def evaluated(self, stage: int, step: int) -> bool:
        """Whether the metrics hold an evaluation of the state after ``step`` steps."""
        return step in self._evaluated.get(stage, ())

    def all_stages(self, last: Mapping[int, tuple[int, float]]) -> dict[str, Any]:
        """Tokens and seconds of training of all stages together; nothing where a stage's rows do not tell. ``last``:
        stage → those of a loop of this attempt, whose last steps may have no row."""
        for stage, (tokens, seconds) in last.items():
            self.tokens[stage], self.seconds[stage] = tokens, seconds
        if self.tokens.keys() != self.seconds.keys():
            return {}
        return {
            "train_tokens_all_stages": sum(self.tokens.values()),
            "train_seconds_all_stages": sum(self.seconds.values()),
        }

    def numbers(self) -> dict[str, Any]:
        """What ``summary.json`` has of it."""
        return {"probes": self.probes} | ({} if self.weights is None else {"weights": self.weights})
