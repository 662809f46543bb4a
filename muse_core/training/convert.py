"""The stage ``convert``: the weights that a run has trained, in the model of another recipe."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from muse_core.recipe import read_recipe
from muse_core.training.conversion import renamed
from muse_core.training.stages import ConvertOptions
from muse_core.training.train_state import kept_weights


class Convert:
    """Does not train. The run goes on with the recipe ``to``; weights that fit by name and shape are carried over, the
    others start as that recipe says, and a table tells which is which."""

    partial = True

    def __init__(self, options: ConvertOptions, context: Any):
        self.options = options
        self.setup = context

    def objective(self, model: Any, data: Any) -> None:
        return None

    def trainable(self, name: str) -> bool:
        return False

    def finish(self, model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        checked = read_recipe(self.options.to, (), self.setup.registry)
        return checked.resolved, renamed(kept_weights(model), self.options.rename)
