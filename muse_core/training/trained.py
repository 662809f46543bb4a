"""Opening what a run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muse_core.errors import StorageError
from muse_core.recipe import read_recipe
from muse_core.training.checkpoint import Checkpoints
from muse_core.training.keeper import load_weights
from muse_core.training.setup import Setup, set_up


def open_trained(run: Path, *, device: str | None = None, registry: Any = None) -> tuple[Setup, int]:
    """The model of a run with the weights of its newest good checkpoint, in evaluation mode, and their step.

    The directory is only read, so that a run in progress may be opened. Raises StorageError when there is no run or
    no checkpoint.
    """
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise StorageError(f"{run}: holds no run (it has no recipe.toml) - name the directory of a run")
    overrides = [] if device is None else [f'train.device="{device}"']
    checked = read_recipe(recipe, overrides, registry)
    setup = set_up(checked.recipe, checked.registry)
    found = Checkpoints(run).newest(quarantine=False)
    if found is None:
        raise StorageError(f"{run}: has no checkpoint yet - wait for the first, or set checkpoint.every lower")
    load_weights(setup.model, found[1].model)
    setup.model.eval()
    return setup, found[1].step
