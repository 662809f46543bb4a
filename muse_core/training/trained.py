"""Opening what a run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from muse_core.errors import StorageError
from muse_core.recipe import read_recipe
from muse_core.training.checkpoint import Checkpoints
from muse_core.training.keeper import load_weights
from muse_core.training.progress import Display
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


def initial_weights(setup: Setup, display: Display) -> None:
    """``[init] from``: put the newest weights of another run into the model. Does nothing where the recipe has none.

    Raises StorageError when there is no run, no checkpoint, or a weight that does not fit.
    """
    source = setup.recipe.init.from_
    if source is None:
        return
    folder = Path(source)
    if not (folder / "checkpoints").is_dir():
        raise StorageError(f"init.from: {folder} has no checkpoints folder; give the directory of a run")
    found = Checkpoints(folder).newest(quarantine=False)
    if found is None:
        raise StorageError(f"init.from: {folder} holds no checkpoint")
    load_weights(setup.model, found[1].model)
    display.say(f"weights from {folder} at step {found[1].step}")
