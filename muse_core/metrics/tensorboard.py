"""Rows of metrics as TensorBoard scalars: an extra of muse-core."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muse_core.errors import RecipeError
from muse_core.storage.disk import storage_errors


def require_tensorboard() -> None:
    """Raises RecipeError where the package is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError(
            "telemetry.tensorboard: the package tensorboard is not installed - pip install 'muse-core[tensorboard]', "
            "or leave the option out: metrics.jsonl has the same numbers"
        )


class TensorBoard:
    """Writes ``tensorboard/stage-<n>`` in the run's directory; tags are ``<event>/<key>``, the step is the row's.

    A stretch that is repeated after a rollback or a resumption replaces the one before it.
    """

    def __init__(self, run_directory: Path):
        require_tensorboard()
        self.folder = run_directory / "tensorboard"
        self._writer: Any = None
        self._stage, self._step = 0, -1

    def row(self, row: Mapping[str, Any]) -> None:
        stage, step = row.get("stage", self._stage), row.get("step", max(self._step, 0))
        prefix = f"{row['event']}/{row['length']}" if "length" in row else row["event"]
        with storage_errors("write for TensorBoard", self.folder):
            if self._writer is None or stage != self._stage or step < self._step:
                self._open(stage, step)
            self._stage, self._step = stage, step
            for key, value in row.items():
                if type(value) in (int, float) and key not in ("step", "stage", "length"):
                    self._writer.add_scalar(f"{prefix}/{key}", value, step)
            self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            with storage_errors("close the TensorBoard file in", self.folder):
                self._writer.close()
            self._writer = None

    def _open(self, stage: int, step: int) -> None:
        # Takes two seconds to import.
        from torch.utils.tensorboard import SummaryWriter

        self.close()
        self._writer = SummaryWriter(str(self.folder / f"stage-{stage}"), purge_step=step)
