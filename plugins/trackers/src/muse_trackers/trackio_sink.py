"""Trackio: a local database of runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muse_core.errors import RecipeError
from muse_core.metrics.sinks import SinkContext, scalars
from muse_trackers.options import TrackioOptions

FOLDER = "TRACKIO_DIR"
"""Variable that the library reads when it is imported, and not later."""


class Trackio:
    """One Trackio run for every run directory; an attempt that goes on adds to it."""

    def __init__(self, options: TrackioOptions, context: SinkContext):
        trackio = imported(options.folder)
        with contextlib.redirect_stdout(sys.stderr):  # where it says what it begins
            self._run: Any = trackio.init(
                options.project,
                name=run_name(context.run),
                config=dict(context.recipe),
                resume="allow" if context.attempt > 1 else "never",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def row(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row, at its step."""
        found = scalars(row)
        if found:
            self._run.log(found | {"stage": row.get("stage", 0)}, step=row.get("step"))

    def event(self, row: Mapping[str, Any]) -> None:
        """Interventions and warnings as alerts."""
        if row.get("reason"):
            with contextlib.redirect_stdout(sys.stderr):
                self._run.alert(title=str(row["event"]), text=str(row["reason"]))

    def end(self, summary: Mapping[str, Any]) -> None:
        """The summary's numbers, once."""
        self._run.log({f"summary/{key}": value for key, value in summary.items() if type(value) in (int, float)})

    def close(self) -> None:
        """Waits until everything is in the database."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()


def run_name(run: Path) -> str:
    """Name of a run in its project: the folder around it, its own, and six digits of the whole path. Trackio takes runs
    of one name for one, and the runs of a plan have seeds as folders. A run that was moved has a new name."""
    run = run.resolve()
    return f"{run.parent.name}-{run.name}-{hashlib.sha256(str(run).encode()).hexdigest()[:6]}"


def imported(folder: str | None) -> Any:
    """The library, with its database in this folder. Raises RecipeError when it is in use with another one."""
    if folder is not None and "trackio" not in sys.modules:
        os.environ[FOLDER] = folder
    import trackio
    from trackio.utils import TRACKIO_DIR

    if folder is not None and Path(TRACKIO_DIR).absolute() != Path(folder).absolute():
        raise RecipeError(f"folder = {folder!r}: this process has Trackio's database in {TRACKIO_DIR} already")
    return trackio
