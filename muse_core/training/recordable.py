"""Why the steps of a recipe, a model and an objective cannot be recorded (``train.cuda_graph``), before one is."""

from __future__ import annotations

from typing import Any

from torch import nn

from muse_core.component import walk
from muse_core.errors import RecipeError
from muse_core.model.precision import choose_device
from muse_core.parallel.sizes import sizes_of
from muse_core.recipe.schema import Recipe
from muse_core.training.objectives import NextToken
from muse_core.training.recorded_gradients import OFF

DRAWN = (
    "train.activation_checkpointing computes blocks once more with the random numbers of the first time, whose state a "
    "recording cannot take back, and this model draws some"
)


def require_recordable(recipe: Recipe, processes: int) -> None:
    """Raises RecipeError with every reason why ``train.cuda_graph`` cannot be had that the recipe alone gives."""
    train = recipe.train
    if not train.cuda_graph:
        return
    found = []
    if choose_device(train.device).type != "cuda":
        gloo = f", whose {processes} processes exchange through gloo, which nothing records" if processes > 1 else ""
        found.append(f"it is for a GPU, and this run's device is the CPU{gloo}")
    if processes > 1 and sizes_of(recipe.parallel, processes).shard > 1:
        found.append(
            "parallel.shard: FSDP2 gathers weights into memory that it takes and gives back in every step, on streams "
            "of its own, and a recording of that was never shown to be right"
        )
    if train.activation_checkpointing and getattr(recipe.model.options, "dropout", 0.0):
        found.append(f"model.dropout: {DRAWN}")
    routers = [use for use in walk(recipe.model.options) if use.kind == "router"]
    if routers:
        found.append(f"{routers[0].path}: which tokens an expert computes is decided by values of tensors")
    if getattr(recipe.model.options, "exit", None) is not None:
        found.append("model.exit: which tokens leave is decided by values of tensors")
    if found:
        raise RecipeError([f"train.cuda_graph: {reason} - {OFF}" for reason in found])


def require_steady(model: nn.Module, objective: Any) -> None:
    """Raises RecipeError where Python changes from step to step what the model or the objective computes."""
    if type(objective) is not NextToken:
        raise RecipeError(
            f"train.cuda_graph: it is for next-token training, and the objective {type(objective).__name__} may "
            f"compute another thing in every step - {OFF}"
        )
    for name, module in model.named_modules():
        # What fills buffers alone changes memory that the recording reads.
        if module is not model and hasattr(module, "update_statistics") and not getattr(module, "fills_buffers", False):
            raise RecipeError(
                f"train.cuda_graph: {name} ({type(module).__name__}) changes with update_statistics what it computes, "
                f"which a recording does not see - {OFF}"
            )
