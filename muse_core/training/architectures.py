"""New architectures that stages make: a recipe and weights under ``stages/<number>-<name>`` of the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from muse_core.data.kept import LOCK, TOKENIZER, newest_folder, read_kept, stage_number
from muse_core.errors import RecipeError, StorageError
from muse_core.recipe import Checked, check_table, read_recipe, to_toml
from muse_core.storage.checkpoint import Checkpoints, Snapshot
from muse_core.storage.run_directory import RunDirectory
from muse_core.training.checkpointer import load_weights
from muse_core.training.conversion import Conversion, carry_over
from muse_core.training.locking import lock_of
from muse_core.training.setup import Setup, set_up
from muse_core.training.shards import gathered
from muse_core.training.trained import embeddings_among


def adopt(
    directory: RunDirectory,
    setup: Setup,
    number: int,
    name: str,
    table: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    *,
    partial: bool = False,
    trained: Mapping[str, int] | None = None,
) -> tuple[Setup, Path, Conversion | None]:
    """Build the recipe ``table`` with ``weights`` and keep both; returns it, its folder and, for a ``partial`` stage,
    what became of each weight. ``trained``: what the stages before have done, for the summary of a run that goes on
    here.

    The recipe is written last: only with it does a resumed run take the stage as finished. Raises RecipeError for a
    table that is not a recipe, and for embeddings of another tokenizer in a partial stage; StorageError for weights
    that do not fit the recipe: all of them, or of a partial stage any.
    """
    checked = check_table(dict(table), setup.registry, f"recipe of stage {name}")
    made = set_up(checked.recipe, setup.registry, ranks=setup.ranks)
    conversion = None
    if partial:
        own = made.model.state_dict()
        fitting = {key: value for key, value in weights.items() if key in own and own[key].shape == value.shape}
        embeddings = embeddings_among(made.model, fitting)
        if embeddings and made.corpus.tokenizer.digest != setup.corpus.tokenizer.digest:
            raise RecipeError(
                f"stage {name}: the recipe has another tokenizer, so that the {' and '.join(embeddings)} of this run "
                "stand for other tokens - give it this run's tokenizer, or start the embeddings afresh with "
                f"fresh = {embeddings}"
            )
        conversion = carry_over(made.model, weights)
    else:
        load_weights(made.model, weights)
    inside = f"stages/{number}-{name}"
    folder = directory.write(f"{inside}/{LOCK}", to_toml(lock_of(checked, made).table)).parent
    directory.write(f"{inside}/{TOKENIZER}", made.corpus.tokenizer.to_json())
    weights = gathered(made.model, setup.ranks.rank == 0)
    told = {"stage": number, "trained": dict(trained or {})}
    start = Snapshot(step=0, model=weights, optimizer={}, state={}, json=told)
    Checkpoints(folder, disk=directory.disk, ranks=setup.ranks).commit(start, certified=True)
    directory.write(f"{inside}/recipe.toml", to_toml(checked.resolved))
    return made, folder, conversion


def latest(directory: RunDirectory, setup: Setup) -> tuple[int, Setup, Path, dict[str, int]] | None:
    """Number, setup and folder of the last finished stage that made an architecture, and what was trained before it;
    None when none did. Raises StorageError where its checkpoints are gone."""
    folder = newest_folder(directory.path)
    if folder == directory.path:
        return None
    checked: Checked = read_recipe(folder / "recipe.toml", (), setup.registry)
    made = set_up(checked.recipe, setup.registry, kept=read_kept(folder), ranks=setup.ranks)
    found = Checkpoints(folder, ranks=setup.ranks).newest()
    if found is None:
        raise StorageError(f"{folder}: the checkpoints of this finished stage are gone - put them back from a copy, or "
                           "start again in another run directory")
    load_weights(made.model, found[1].model)
    return stage_number(folder), made, folder, found[1].json.get("trained", {})
