"""Several runs as a table: a row each, finished or not. Imports no torch, loads no plugin."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from muse_core.errors import StorageError
from muse_core.given import path as path_of
from muse_core.report.reading import RunRead, read_run
from muse_core.storage.run_directory import require_run, runs_below

SUMMARY = (
    "held_out_split", "held_out_bits_per_byte", "held_out_loss", "held_out_accuracy", "held_out_documents",
    "held_out_tokens", "parameters", "active_parameters", "state_numbers", "train_tokens", "train_seconds",
    "train_tokens_all_stages", "train_seconds_all_stages", "tokens_per_second", "rollbacks", "device", "precision",
)
"""Of summary.json."""


def runs_at(paths: Iterable[Path]) -> list[Path]:
    """The paths, with the runs below in place of folders that are no runs. Raises StorageError where there is none."""
    found: list[Path] = []
    for path in paths:
        below = [] if (path / "recipe.toml").is_file() else runs_below(path, depth=3)
        if not below:
            require_run(path)
        found += below or [path]
    return found


def readable(paths: Iterable[Path]) -> tuple[list[RunRead], list[tuple[Path, str]]]:
    """The runs, labelled with their paths, and those that cannot be read with why."""
    found, unread = [], []
    for path in paths:
        try:
            found.append(read_run(path, str(path)))
        except StorageError as error:
            unread.append((path, str(error)))
    return found, unread


def row(run: RunRead) -> dict[str, Any]:
    """The numbers of a run, None for what it does not have yet."""
    summary = run.summary
    low, high = summary.get("held_out_interval") or (None, None)
    steps, planned = run.progress
    return {
        "run": run.label, "name": run.name, "state": run.state, "seed": run.recipe.get("seed"), "steps": steps,
        "planned_steps": planned,
        **{key: summary.get(key) for key in SUMMARY[:2]}, "low": low, "high": high,
        **{key: summary.get(key) for key in SUMMARY[2:]},
    }


def runs(*folders: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """A row for each run in the folders, by default ``runs``, or at them: a table for ``pandas.DataFrame``, as ``muse
    show --format csv`` writes it. A run that cannot be read says so in ``state``. Raises StorageError for a folder that
    holds none."""
    found, unread = readable(runs_at(path_of("a folder", folder) for folder in folders or ("runs",)))
    return [*map(row, found), *({"run": str(path), "state": f"cannot be read: {why}"} for path, why in unread)]
