"""How many processes do what. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple

from muse_core.component import walk
from muse_core.errors import RecipeError
from muse_core.plugins.discovery import CORE
from muse_core.recipe.schema import Parallel, Recipe


class Sizes(NamedTuple):
    """Of a run; their product is the number of its processes."""

    data: int
    shard: int
    context: int

    @property
    def batches(self) -> int:
        """Processes, or groups of ``context`` ones, with rows of their own."""
        return self.data * self.shard


def sizes_of(parallel: Parallel, processes: int) -> Sizes:
    """``[parallel]`` for so many processes. Raises RecipeError when they do not fit, and when two sizes could take
    those that are left."""
    wanted = {"data": parallel.data, "shard": parallel.shard, "context": parallel.context}
    known = 1
    for value in wanted.values():
        known *= 1 if value == "auto" else value
    automatic = [key for key, value in wanted.items() if value == "auto"]
    rest, left = divmod(processes, known)
    if left or not rest or (rest > 1 and not automatic):
        told = " × ".join(f"{key} {value}" for key, value in wanted.items())
        raise RecipeError(
            f"parallel: {told} does not make {processes} process{'es' if processes > 1 else ''} - start "
            f"{known}{' or a multiple' if automatic else ''} of them with muse-run --processes, or change [parallel]"
        )
    if rest > 1 and len(automatic) > 1:
        raise RecipeError(
            f"parallel: {' and '.join(automatic)} are \"auto\", and {rest} processes are left for one of them - give "
            f"the others a number, as {automatic[0]} = 1"
        )
    found = {key: 1 if value == "auto" else value for key, value in wanted.items()}
    if automatic:
        found[automatic[0]] = rest
    return Sizes(**found)


def check_sizes(recipe: Recipe, processes: int) -> Sizes:
    """The sizes of a run that can be divided so. Raises RecipeError naming the key that does not fit."""
    sizes = sizes_of(recipe.parallel, processes)
    train = recipe.train
    if train.batch_size % sizes.batches:
        raise RecipeError(
            f"train.batch_size: {train.batch_size} rows cannot be divided among {sizes.batches} processes - take a "
            f"multiple of {sizes.batches}, or other numbers in [parallel]"
        )
    if train.sequence_length % sizes.context:
        raise RecipeError(
            f"train.sequence_length: {train.sequence_length} tokens cannot be divided among {sizes.context} processes "
            "- take a multiple, or another parallel.context"
        )
    if processes > 1 and recipe.data.order == "streams":  # layers carry what their own tokens leave, not the row's end
        raise RecipeError(
            'data.order: "streams" carries state from step to step and runs as one process - take "permuted", or one '
            "process"
        )
    if sizes.context > 1:
        _check_context(recipe, sizes)
    if processes > 1 and ":" in train.device:
        raise RecipeError(
            f"train.device: {train.device!r} names one device for {processes} processes - write cuda, and each takes "
            "that of its number on its host"
        )
    return sizes


def _check_context(recipe: Recipe, sizes: Sizes) -> None:
    """Raises RecipeError naming what cannot compute on a part of a row's tokens. A layer can whose options have a
    method ``undivided`` that returns None and not the reason why it cannot."""
    advice = "set parallel.context = 1, and divide rows (parallel.data) or weights (parallel.shard)"
    if sizes.shard > 1:
        raise RecipeError(f"parallel.context: {sizes.context} beside parallel.shard: {sizes.shard} - one of them is 1")
    if recipe.train.compile:
        raise RecipeError("parallel.context: tokens that are divided are not compiled yet - set train.compile = false")
    if getattr(recipe.model.options, "exit", None) is not None:
        raise RecipeError(f"parallel.context: [model] exit moves tokens within a row - {advice}")
    for use in (recipe.model, *walk(recipe.model.options)):
        if use.kind not in ("model", "layer", "memory layer", "filter"):
            continue
        if use is recipe.model and use.name == "stack":
            continue
        ask = getattr(use.options, "undivided", None)
        reason = "reads whole rows of tokens" if ask is None else ask()
        if reason is not None:
            raise RecipeError(f"parallel.context: {use.path or use.kind}: {use.name} {reason} - {advice}")
    for use in recipe.stages:
        # An objective of a plugin may ask a second model, which would take its part of a row for the whole.
        if use.distribution != CORE:
            raise RecipeError(
                f"parallel.context: {use.path or use.kind}: the objective of {use.name} reads whole rows of tokens - "
                f"{advice}"
            )
