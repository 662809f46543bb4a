"""Opening what a run has trained."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from rich.console import Console

from muse_core.errors import StorageError
from muse_core.metrics.console import Display
from muse_core.recipe import read_recipe
from muse_core.storage.checkpoint import Checkpoints, Snapshot
from muse_core.training.architectures import newest_folder
from muse_core.training.checkpointer import load_weights
from muse_core.training.conversion import Conversion, carry_over, renamed
from muse_core.training.setup import Setup, set_up


def newest_of(run: Path, *, asked_by: str = "") -> tuple[Path, Snapshot]:
    """The folder of a run's newest architecture (its recipe and lock are there) and its newest good checkpoint.

    The directory is only read, so that a run in progress may be opened. ``asked_by`` stands before messages. Raises
    StorageError when there is no run or no checkpoint.
    """
    before = f"{asked_by}: " if asked_by else ""
    if not (run / "recipe.toml").is_file():
        raise StorageError(f"{before}{run}: holds no run (it has no recipe.toml) - name the directory of a run")
    folder = newest_folder(run)
    found = Checkpoints(folder).newest(quarantine=False)
    if found is None:
        raise StorageError(f"{before}{run}: has no checkpoint yet - wait for the first, or set checkpoint.every lower")
    return folder, found[1]


def open_trained(run: Path, *, device: str | None = None, registry: Any = None) -> tuple[Setup, int]:
    """The model of a run with the weights of its newest good checkpoint, in evaluation mode, and their step.

    Raises as ``newest_of``.
    """
    folder, snapshot = newest_of(run)
    overrides = [] if device is None else [f'train.device="{device}"']
    checked = read_recipe(folder / "recipe.toml", overrides, registry)
    setup = set_up(checked.recipe, checked.registry)
    load_weights(setup.model, snapshot.model)
    setup.model.eval()
    return setup, snapshot.step


def open_start(run: Path, *, registry: Any = None) -> Setup:
    """The model of a run's newest architecture with the weights that its recipe begins with, those of ``[init] from``
    included. Raises StorageError when there is no run."""
    if not (run / "recipe.toml").is_file():
        raise StorageError(f"{run}: holds no run (it has no recipe.toml) - name the directory of a run")
    checked = read_recipe(newest_folder(run) / "recipe.toml", (), registry)
    setup = set_up(checked.recipe, checked.registry)
    initial_weights(setup, Display(Console(quiet=True)))
    setup.model.eval()
    return setup


def initial_weights(setup: Setup, display: Display) -> Conversion | None:
    """``[init] from``: put the newest weights of another run into the model where they fit. None where the recipe has
    no such run.

    Raises StorageError when there is no run, no checkpoint, or no weight that fits.
    """
    init = setup.recipe.init
    if init.from_ is None:
        return None
    folder, snapshot = newest_of(Path(init.from_), asked_by="init.from")
    try:
        conversion = carry_over(setup.model, renamed(snapshot.model, init.rename))
    except StorageError as error:
        raise StorageError(f"init.from: {init.from_}: {error}") from error
    display.say(f"weights from {init.from_} at step {snapshot.step}")
    if _tokenizer_of(folder) not in (None, setup.corpus.tokenizer.digest):
        display.say("that run has another tokenizer: its embeddings stand for other tokens", "yellow")
    return conversion


def _tokenizer_of(folder: Path) -> str | None:
    """Digest of a run's tokenizer, by its lock; None when the lock does not say."""
    lock = folder / "muse.lock.toml"
    return tomllib.loads(lock.read_text()).get("digests", {}).get("tokenizer") if lock.is_file() else None
