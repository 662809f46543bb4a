"""Opening what a run has trained. No text is read, and every digest of the run's lock is compared."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from muse_core.data.kept import Kept, newest_folder, read_kept
from muse_core.errors import RecipeError, StorageError, typed
from muse_core.metrics.console import Display
from muse_core.metrics.jsonl import own_rows
from muse_core.model.roles import EMBEDDING, parameter_roles
from muse_core.recipe import Checked, read_recipe
from muse_core.recipe.lock import Lock, differences, plugins_named
from muse_core.storage.checkpoint import Checkpoints, Generation, Snapshot
from muse_core.storage.run_directory import require_run
from muse_core.training.checkpointer import load_weights
from muse_core.training.conversion import Conversion, carry_over, check_fit, renamed
from muse_core.training.locking import lock_of
from muse_core.training.setup import Setup, set_up

Say = Callable[[str], None]
"""Takes a sentence for the person who asked."""
NUMBERS = ("recipe.model", "recipe.data")
"""Beginnings of keys that decide what the weights compute and what its tokens and text are: an opened run must have
them as its lock says."""


def silent(sentence: str) -> None:
    """Says nothing."""


def newest_of(
    run: Path, *, asked_by: str = "", step: int | None = None, untrained: bool = True, say: Say = silent
) -> tuple[Path, Generation, Snapshot]:
    """The folder of a run's newest architecture (its recipe and lock are there) and its newest good checkpoint, or that
    of ``step``.

    The directory is only read, so that a run in progress may be opened. ``say`` hears of newer checkpoints that could
    not be used. ``asked_by`` stands before messages. Raises StorageError when there is no run, no checkpoint (of that
    step), and, unless ``untrained`` or a ``step`` allows it, when the run has trained no step that can be used.
    """
    before = f"{asked_by}: " if asked_by else ""
    require_run(run, asked_by=asked_by)
    folder = newest_folder(run)
    checkpoints = Checkpoints(folder)
    if step is None:
        found = checkpoints.newest(quarantine=False)
    else:
        found = checkpoints.at(step)
        if found is None and (known := sorted({one.step for one in checkpoints.generations()})):
            there = ", ".join(map(str, known))
            raise StorageError(f"{before}{run}: has no checkpoint of step {step} that can be used - there are {there}")
    if found is None:
        gone = (run / "summary.json").exists() or any("step" in row for row in own_rows(run / "metrics.jsonl"))
        why = ("has no checkpoint, although it has trained: they were removed or are elsewhere - put them back"
               if gone else "has no checkpoint yet - wait for the first, or set checkpoint.every lower")
        raise StorageError(f"{before}{run}: {why}")
    lost = "; ".join(f"generation {one.number}: {one.reason}" for one in checkpoints.rejected)
    if lost and step is None:
        say(f"{before}{run}: opened at step {found[1].step}, newer checkpoints cannot be used ({lost})")
    trained = found[1].step > 0 or folder != run
    if step is None and not untrained and not trained:
        why = f"newer ones cannot be used: {lost}" if lost else "no other was saved yet"
        raise StorageError(
            f"{before}{run}: has only the checkpoint of step 0, of the model before training ({why}) - train on with "
            f"muse-run --resume {typed(run)}, or ask for those weights by step 0"
        )
    return folder, *found


def open_trained(
    run: Path,
    *,
    device: str | None = None,
    overrides: Sequence[str] = (),
    registry: Any = None,
    step: int | None = None,
    untrained: bool = True,
    say: Say = silent,
) -> tuple[Setup, int]:
    """The model of a run with the weights of its newest good checkpoint or that of ``step``, in evaluation mode, and
    their step. Its text is not opened before it is asked for. ``overrides``, as ``KEY=VALUE``, choose how it computes.

    ``say`` hears what differs from the run's lock, other than kernels that were asked for. Raises as ``newest_of``, and
    RecipeError when what differs changes the model or its tokens.
    """
    folder, _, snapshot = newest_of(run, step=step, untrained=untrained, say=say)
    setup = _opened(folder, (*overrides, *_on(device)), registry, say)
    load_weights(setup.model, snapshot.model)
    setup.model.eval()
    return setup, snapshot.step


def _on(device: str | None) -> tuple[str, ...]:
    return () if device is None else (f'train.device="{device}"',)


def open_start(run: Path, *, device: str | None = None, registry: Any = None) -> Setup:
    """The model of a run's newest architecture with the weights that its recipe begins with, those of ``[init] from``
    included. Raises StorageError when there is no run."""
    require_run(run)
    folder = newest_folder(run)
    setup = _opened(folder, _on(device), registry, silent)
    kept = Checkpoints(folder).at(0) if folder == run and setup.recipe.init.from_ is not None else None
    if kept is not None:
        load_weights(setup.model, kept[1].model)
    else:
        initial_weights(setup, Display(Console(quiet=True)))
    setup.model.eval()
    return setup


def _opened(folder: Path, overrides: Sequence[str], registry: Any, say: Say) -> Setup:
    """The model of an architecture of a run, compared with its lock."""
    kept = read_kept(folder)
    with plugins_named(kept.lock):
        checked = read_recipe(folder / "recipe.toml", (), registry, made_with=kept.lock.made_with)
    wanted = checked if not overrides else read_recipe(folder / "recipe.toml", overrides, checked.registry)
    setup = set_up(wanted.recipe, wanted.registry, kept=kept, read=False)
    _compare(kept, checked, setup, say, kernels=not any(one.startswith("kernels.") for one in overrides))
    return setup


def _compare(kept: Kept, checked: Checked, setup: Setup, say: Say, *, kernels: bool) -> None:
    folder, lock = kept.folder, kept.lock
    # The file is compared as it stands: defaults that a later version adds are no difference.
    there = checked.source.table
    here = lock_of(checked, setup, digests=lock.table["digests"])
    found = differences(lock, Lock(here.table | {"recipe": there}, here.where))
    if wrong := [str(one) for one in found if one.what.startswith(NUMBERS)]:
        raise RecipeError(
            [f"{folder}: the run is not what its lock says, so that its weights would mean something else:",
             *(f"  {one}" for one in wrong), "bring the file back as it was"]
        )
    if not kernels:
        found = tuple(one for one in found if not one.what.startswith("kernels"))
    if found:
        say(f"{folder}: differs from the run's lock, numbers may differ: " + "; ".join(map(str, found)))


def initial_weights(setup: Setup, display: Display) -> Conversion | None:
    """``[init] from``: put the newest weights of another run into the model where they fit. None where the recipe has
    no such run.

    Raises StorageError when there is no run, no checkpoint, or no weight that fits.
    """
    def say(sentence: str) -> None:
        display.say(sentence, "yellow")

    found = weights_of_init(setup, say=say)
    if found is None:
        return None
    weights, step = found
    display.say(f"weights from {setup.recipe.init.from_} at step {step}")
    return carry_over(setup.model, weights)


def weights_of_init(setup: Setup, *, say: Say = silent) -> tuple[dict[str, Tensor], int] | None:
    """The weights that ``[init]`` gives, under the names of this model, and their step; None without one. Raises as
    ``initial_weights``, and RecipeError when they belong to another tokenizer."""
    init = setup.recipe.init
    if init.from_ is None:
        return None
    folder, _, snapshot = newest_of(Path(init.from_), asked_by="init.from", untrained=False, say=say)
    try:
        weights = renamed(snapshot.model, init.rename)
        weights = without(weights, init.fresh, "init.fresh")
        check_fit(setup.model, weights)
        theirs = read_kept(folder)
    except StorageError as error:
        raise StorageError(f"init.from: {init.from_}: {error}") from error
    embeddings = embeddings_among(setup.model, weights)
    if embeddings and theirs.tokenizer_digest != setup.corpus.tokenizer.digest:
        of_task = min(theirs.tokenizer.separator, setup.corpus.tokenizer.separator) < 0
        take_it = "leave data.tokenizer out or write data.tokenizer = { from = RUN } to take its tokenizer, or "
        raise RecipeError(
            f"init.from: {init.from_}: that run has {'other tokens' if of_task else 'another tokenizer'}, so that its "
            f"{' and '.join(embeddings)} stand for other tokens - {'' if of_task else take_it}start the "
            f"embeddings afresh with init.fresh = {embeddings}"
        )
    return weights, snapshot.step


def without(weights: Mapping[str, Tensor], patterns: tuple[str, ...], key: str) -> dict[str, Tensor]:
    """The weights whose names match none of the patterns. Raises StorageError for a pattern that matches no name."""
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in weights):
            like = ", ".join(list(weights)[:3])
            raise StorageError(f"{key}: {pattern!r} matches no weight; they are named like {like}")
    return {
        name: value for name, value in weights.items()
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def embeddings_among(model: Any, weights: Mapping[str, Tensor]) -> list[str]:
    """Which of the weights are embeddings of the model: of another tokenizer they stand for other tokens."""
    return [name for name, role in parameter_roles(model).items() if role == EMBEDDING and name in weights]
