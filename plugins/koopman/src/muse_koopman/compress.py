"""The stage ``koopman-compress``."""

from __future__ import annotations

from typing import Any

import attrs
from torch import Tensor, nn

from muse_core.errors import RecipeError
from muse_core.recipe.resolved import as_table
from muse_core.training.train_state import kept_weights
from muse_koopman.forms import EMBEDDING, Form, chosen_forms
from muse_koopman.options import CompressOptions
from muse_koopman.pairs import candidates
from muse_koopman.sizes import Shape, least_bytes, model_bytes, shape_of, uncompressed_bytes


class Compress:
    """Does not train. Yields the recipe of the model ``compressed`` with its weights."""

    def __init__(self, options: CompressOptions, context: Any):
        self.options = options
        self.setup = context
        self._made: tuple[list[Form], dict[str, Any]] | None = None

    def objective(self, model: Any, data: Any) -> None:
        return None

    def trainable(self, name: str) -> bool:
        return False

    def refuse(self) -> str | None:
        """``optional_contracts.Refuses``: a model that has no maps to compress, or a ratio out of reach."""
        model, options = self.setup.model, self.options
        name = self.setup.recipe.model.name
        if name.partition("@")[0] not in ("stack", "compressed"):
            return f"the model is {name!r}; only stack and what was compressed from it can be compressed"
        shapes = self.shapes()
        if not shapes:
            return (f"the model has no linear map of {options.least} rows and columns or more that is not stored as "
                    "integers or sparse already - lower least, or name the run that it was made from")
        if options.goal is None:
            return None
        whole = uncompressed_bytes(model)
        embedding = self.embedding()
        others = model_bytes(model) - sum(model_bytes(model.get_submodule(name)) for name in shapes)
        others -= 0 if embedding is None else embedding.whole()
        biases = sum(
            4 * shape.rows for name, shape in shapes.items() if model.get_submodule(name).bias is not None
        )
        reach = whole / (others + biases + least_bytes(options.method, shapes, options.store, embedding))
        if reach < options.goal:
            with_then = f" with then = {options.then!r}" if options.then != "none" else ""
            return (f"a ratio of {options.goal:g} is out of reach: {options.method}{with_then} makes this model at "
                    f"most {reach:.2f} times smaller - ask for less, or take another method")
        return None

    def shapes(self) -> dict[str, Shape]:
        return {name: shape_of(module) for name, module in candidates(self.setup.model, self.options.least).items()}

    def embedding(self) -> Shape | None:
        """Of the embedding where it is still a plain table."""
        table = getattr(self.setup.model, EMBEDDING, None)
        return shape_of(table) if isinstance(table, nn.Embedding) else None

    def made(self) -> tuple[list[Form], dict[str, Any]]:
        """The form of each map, and how it was chosen. Computed once. Raises RecipeError for a model or a ratio that
        cannot be served."""
        if self._made is None:
            if sentence := self.refuse():
                raise RecipeError(f"koopman-compress: {sentence}")
            self._made = chosen_forms(self.setup, self.options, self.shapes(), self.embedding())
        return self._made

    def measured(self) -> dict[str, Any]:
        """``optional_contracts.Measures``: what became of each map, and of the whole."""
        forms, how = self.made()
        rows = [form.row(self.setup.model) for form in forms]
        before = uncompressed_bytes(self.setup.model)
        after = model_bytes(self.setup.model) - sum(row["bytes_before"] - row["bytes_after"] for row in rows)
        whole = {"method": self.options.method, **how, "bytes_uncompressed": before, "bytes": after,
                 "ratio": before / after}
        return {"compression": [whole], "maps": rows}

    def finish(self, model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
        forms, _ = self.made()
        weights = kept_weights(model)
        earlier = {one.module: one for one in getattr(self.setup.recipe.model.options, "map", ())}
        for form in forms:
            if form.module is None:
                continue
            for own in [name for name in weights if name.startswith(f"{form.name}.")]:
                del weights[own]
            weights |= {f"{form.name}.{own}": value for own, value in kept_weights(form.module).items()}
            earlier[form.name] = form.options
        registry = self.setup.registry
        table = as_table(self.setup.recipe, registry)
        maps = [
            {key: value for key, value in attrs.asdict(one).items() if value is not None} for one in earlier.values()
        ]
        reference = registry.reference("model", "compressed", "muse-koopman")
        # First values of maps that are gone, and the run that these weights began with, have no place any more.
        table = {key: value for key, value in table.items() if key not in ("initializers", "init")}
        table |= {"model": {**table["model"], "use": reference, "map": maps}, "stages": [{"use": "train"}]}
        return table, weights
