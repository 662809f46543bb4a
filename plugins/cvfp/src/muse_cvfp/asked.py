"""What the stages ask of the model that they are given."""

from __future__ import annotations

from typing import Any

from muse_core.errors import RecipeError
from muse_cvfp.model import Cvfp


def contextual(model: Any, stage: str) -> Cvfp:
    """The model itself. Raises RecipeError for another than ``cvfp``."""
    if not isinstance(model, Cvfp):
        kind = type(model).__name__
        raise RecipeError(f'stages: {stage} trains the model cvfp, not {kind}: write model.use = "cvfp"')
    return model
