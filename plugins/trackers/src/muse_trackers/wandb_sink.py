"""Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from muse_core.metrics.sinks import SinkContext, scalars
from muse_trackers.options import WandbOptions


class Wandb:
    """One run of the library for every run directory. Its own step counts rows, since after a rollback steps repeat;
    charts are drawn over ``step``."""

    def __init__(self, options: WandbOptions, context: SinkContext):
        import wandb

        identity = hashlib.sha256(str(context.run.absolute()).encode()).hexdigest()[:16]
        self._run: Any = wandb.init(
            project=options.project,
            entity=options.entity,
            name=context.run.name,
            id=identity,
            resume="allow" if options.mode == "online" else None,
            dir=str(context.run),
            mode=options.mode,
            config=dict(context.recipe),
            reinit="create_new",
            settings=wandb.Settings(
                console="off", save_code=False, disable_git=True, silent=True, x_disable_stats=True, login_timeout=30
            ),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def row(self, row: Mapping[str, Any]) -> None:
        """The numbers of a row."""
        found = scalars(row)
        if found:
            self._run.log(found | {key: row[key] for key in ("step", "stage") if key in row})

    def event(self, row: Mapping[str, Any]) -> None:
        """Interventions and warnings as alerts, which the server may send on."""
        if row.get("reason"):
            self._run.alert(title=str(row["event"]), text=str(row["reason"]))

    def end(self, summary: Mapping[str, Any]) -> None:
        """The summary, as the library's own."""
        self._run.summary.update({f"summary/{key}": value for key, value in summary.items()})

    def close(self) -> None:
        """Waits until everything is written."""
        self._run.finish()
