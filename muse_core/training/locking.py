"""The lock of a run as it stands after set-up."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from muse_core.data.kept import newest_folder
from muse_core.evaluation.causality import TOLERANCES
from muse_core.plugins import Registry
from muse_core.recipe import Checked, read_recipe, to_toml
from muse_core.recipe.lock import Lock, make_lock
from muse_core.recipe.schema import Recipe
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training.setup import Setup
from muse_core.training.stages import ConvertOptions


def lock_of(checked: Checked, setup: Setup, *, digests: Mapping[str, str] | None = None) -> Lock:
    """Versions, digests, device and kernels that the numbers of this run depend on. ``digests``: those of the text, the
    tokenizer and other inputs, where they are known; see ``own_digests`` and ``input_digests``."""
    device = setup.precision.device
    name = f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    checked_on, dtype = setup.exact_check
    gate = {}
    if (checked_on.type, dtype) != ("cpu", torch.float64):
        gate = {"device": checked_on.type, "precision": str(dtype).removeprefix("torch."), "tolerance": TOLERANCES[dtype]}
    return make_lock(
        checked,
        device=name,
        kernels=setup.kernels.selections,
        digests=own_digests(setup) if digests is None else digests,
        in_training=setup.corpus.in_training,
        causality_gate=gate,
    )


def own_digests(setup: Setup) -> dict[str, str]:
    """Digests of the text and of the tokenizer."""
    return {"data": setup.corpus.digest, "tokenizer": setup.corpus.tokenizer.digest}


def input_digests(recipe: Recipe, registry: Registry, *, init: bool = True, first_stage: int = 0) -> dict[str, str]:
    """Digests of what a run reads besides text: the weights of ``init.from`` (unless ``init`` is false) and the recipe
    of every conversion from stage ``first_stage`` on.

    Raises StorageError for a run without a checkpoint that can be used, RecipeError for a recipe that is wrong.
    """
    found: dict[str, str] = {}
    if init and recipe.init.from_ is not None:
        newest = Checkpoints(newest_folder(Path(recipe.init.from_))).newest(quarantine=False)
        if newest is not None:
            found["init"] = newest[0].state_hash
    for number, use in enumerate(recipe.stages):
        if number >= first_stage and isinstance(use.options, ConvertOptions):
            resolved = read_recipe(use.options.to, (), registry).resolved
            found[f"stage_{number}"] = hashlib.sha256(to_toml(resolved).encode()).hexdigest()
    return found
