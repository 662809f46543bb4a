"""What the stages ask of the model that they are given."""

from __future__ import annotations

from typing import Any

from muse_core.errors import RecipeError
from muse_core.training.shards import is_divided
from muse_cvfp.model import Cvfp


def contextual(model: Any, stage: str) -> Cvfp:
    """The model itself. Raises RecipeError for another than ``cvfp``, and for one that processes have parts of."""
    if not isinstance(model, Cvfp):
        kind = type(model).__name__
        raise RecipeError(f'stages: {stage} trains the model cvfp, not {kind}: write model.use = "cvfp"')
    if any(map(is_divided, model.parameters())):
        raise RecipeError(
            f"parallel.shard: {stage} reads parts of the model beside its forward pass, of whose weights each process "
            "has some - set parallel.shard = 1"
        )
    return model
