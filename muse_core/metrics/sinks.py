"""Which sinks a recipe asks for."""

from __future__ import annotations

from pathlib import Path

from muse_core.metrics.recorder import Sink
from muse_core.metrics.tensorboard import TensorBoard, require_tensorboard
from muse_core.recipe.schema import Recipe


def require_sinks(recipe: Recipe) -> None:
    """Raises RecipeError when something that a sink needs is not installed; before anything is prepared."""
    if recipe.telemetry.tensorboard:
        require_tensorboard()


def open_sinks(recipe: Recipe, run_directory: Path) -> list[Sink]:
    """The recipe's sinks in a run's directory."""
    return [TensorBoard(run_directory)] if recipe.telemetry.tensorboard else []
