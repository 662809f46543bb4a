"""Completes the numbers of a run, writes them to metrics.jsonl and hands them to other sinks. Imports no torch."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from muse_core import __version__
from muse_core.errors import Halted
from muse_core.metrics.jsonl import Records
from muse_core.metrics.schema import SCHEMA, SHARED
from muse_core.metrics.sinks import Sinks


class Listener(Protocol):
    """What is told of every row."""

    def row(self, row: Mapping[str, Any]) -> None: ...

    def event(self, row: Mapping[str, Any]) -> None: ...


class Telemetry:
    """The records of a run with rows as ``metrics_schema`` describes them.

    ``earlier`` are the rows of former attempts, from which ``ppl_delta`` goes on, so that a resumed run writes what an
    unstopped one would have.
    """

    def __init__(
        self,
        records: Records,
        earlier: Iterable[Mapping[str, Any]] = (),
        listener: Listener | None = None,
        say: Callable[[str], None] = lambda sentence: None,
    ):
        self.records = records
        self.listener = listener
        self.say = say
        self.sinks = Sinks(self._about_sinks)
        self.stage = 0
        """Number of the stage that rows are written for."""
        self._known: dict[int, tuple[list[int], list[float]]] = {}
        """Stage → steps and their perplexities. A resumed run goes through the stages that are done once more."""
        for row in earlier:
            if row.get("event") == "train":
                self.begin(row.get("stage", 0))
                self._follow(row["step"], float(row["perplexity"]))
        records.metrics({"event": "schema", "schema": SCHEMA, "muse_core": __version__})

    def begin(self, stage: int) -> None:
        """Rows from now on belong to this stage."""
        self.stage = stage

    def metrics(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Append a row and return it complete."""
        row = dict(row)
        if "step" in row:
            row["stage"] = self.stage
        if row["event"] == "train":
            row["ppl_delta"] = self._follow(row["step"], row["perplexity"])
            row |= shared(row)
        self.records.metrics(row)
        if self.listener is not None:
            self.listener.row(row)
        self.sinks.row(row)
        return row

    def event(self, row: Mapping[str, Any]) -> None:
        self._event(row)
        self.sinks.event(row)

    def _event(self, row: Mapping[str, Any]) -> None:
        if "step" in row:  # which is counted in its stage
            row = {"stage": self.stage} | row
        self.records.event(row)
        if self.listener is not None:
            self.listener.event(row)

    def _about_sinks(self, row: dict[str, Any]) -> None:
        self._event(row)
        self.say(f"warning: {row['reason']}")

    def sync(self) -> None:
        self.records.sync()

    def close(self) -> None:
        self.sinks.close()

    def __enter__(self) -> Telemetry:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Closes, and writes first why the run is halted where it is."""
        try:
            if isinstance(error, Halted):
                self.event({"event": "halt"} | error.facts)
        finally:
            self.close()

    def _follow(self, step: int, perplexity: float) -> float | None:
        """The difference to the row before ``step``; what was known of this step and later ones is forgotten."""
        steps, perplexities = self._known.setdefault(self.stage, ([], []))
        kept = bisect.bisect_left(steps, step)
        del steps[kept:], perplexities[kept:]
        before = perplexities[-1] if perplexities else None
        steps.append(step)
        perplexities.append(perplexity)
        return None if before is None else perplexity - before


def shared(row: Mapping[str, Any]) -> dict[str, float]:
    """Means over layers of the metrics that several kinds of layers have."""
    found: dict[str, float] = {}
    for name, measures in SHARED.items():
        ends = tuple(f"/{measure}" for measure in measures)
        values = [value for key, value in row.items() if key.endswith(ends)]
        if values:
            found[name] = sum(values) / len(values)
    return found
