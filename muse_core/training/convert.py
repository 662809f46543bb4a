"""The stage ``convert``: the weights that a run has trained, in the model of another recipe."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from muse_core.data.corpus import open_corpus
from muse_core.recipe import read_recipe
from muse_core.training.conversion import renamed
from muse_core.training.stages import ConvertOptions
from muse_core.training.train_state import kept_weights
from muse_core.training.trained import without


class Convert:
    """Does not train. The run goes on with the recipe ``to``; weights that fit by name and shape are carried over, the
    others start as that recipe says, and a table tells which is which."""

    partial = True

    def __init__(self, options: ConvertOptions, context: Any):
        self.options = options
        self.setup = context

    def refuse(self) -> str | None:
        """``optional_contracts.Refuses``: a text that cannot be had, and embeddings of another tokenizer. Raises as
        ``open_corpus``."""
        data = read_recipe(self.options.to, (), self.setup.registry).recipe.data
        if data == self.setup.recipe.data:
            return None
        there, here = open_corpus(data, seed=data.split_seed).tokenizer, self.setup.corpus.tokenizer
        if self.options.fresh or there.digest == here.digest or there.vocabulary_size != here.vocabulary_size:
            return None  # embeddings of another size are not carried over
        return (f"{self.options.to} has another tokenizer of {here.vocabulary_size} tokens, in which this run's "
                'embeddings mean nothing - give it this run\'s, or start them afresh with fresh = ["embedding.*"]')

    def objective(self, model: Any, data: Any) -> None:
        return None

    def trainable(self, name: str) -> bool:
        return False

    def finish(self, model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        checked = read_recipe(self.options.to, (), self.setup.registry)
        weights = renamed(kept_weights(model), self.options.rename)
        return checked.resolved, without(weights, self.options.fresh, "fresh")
