"""The sink."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muse_core.metrics.sinks import SinkContext

from new_plugin.options import NewPluginOptions


class NewPlugin:
    """A line for every train row; what a rollback or a resumption repeats stands again, and the last line counts."""

    def __init__(self, options: NewPluginOptions, context: SinkContext):
        path = context.run / options.file
        fresh = not path.exists()
        self._file = path.open("a", encoding="utf-8")
        if fresh:
            self._file.write("stage,step,loss\n")

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl."""
        if row["event"] == "train":
            self._file.write(f"{row['stage']},{row['step']},{row['loss']}\n")
            self._file.flush()

    def event(self, row: Mapping[str, Any]) -> None:
        """A row of events.jsonl."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """The content of summary.json."""

    def close(self) -> None:
        """At the end of the process."""
        self._file.close()
