"""Rows of metrics as TensorBoard scalars: an extra of muse-core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from muse_core.metrics.options import TensorBoardOptions
from muse_core.metrics.sinks import SinkContext, scalars
from muse_core.storage.disk import storage_errors


class TensorBoard:
    """Writes ``tensorboard/stage-<n>`` in the run's directory; tags are ``<event>/<key>``, the step is the row's.

    A stretch that is repeated after a rollback or a resumption replaces the one before it.
    """

    def __init__(self, options: TensorBoardOptions, context: SinkContext):
        self.folder = context.run / "tensorboard"
        self._writer: Any = None
        self._stage, self._step = 0, -1

    def row(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row."""
        stage, step = row.get("stage", self._stage), row.get("step", max(self._step, 0))
        with storage_errors("write for TensorBoard", self.folder):
            if self._writer is None or stage != self._stage or step < self._step:
                self._open(stage, step)
            self._stage, self._step = stage, step
            for tag, value in scalars(row).items():
                self._writer.add_scalar(tag, value, step)
            self._writer.flush()

    def event(self, row: Mapping[str, Any]) -> None:
        """Events are no scalars."""

    def end(self, summary: Mapping[str, Any]) -> None:
        """The last evaluation is among the rows."""

    def close(self) -> None:
        """Closes the file."""
        if self._writer is not None:
            with storage_errors("close the TensorBoard file in", self.folder):
                self._writer.close()
            self._writer = None

    def _open(self, stage: int, step: int) -> None:
        # Takes two seconds to import.
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self.folder / f"stage-{stage}"), purge_step=step)
