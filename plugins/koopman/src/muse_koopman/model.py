"""The model ``compressed``: the stack with some maps stored smaller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor, fx

from muse_core.errors import RecipeError
from muse_core.model.stack import Stack
from muse_koopman.maps import first_value, replace
from muse_koopman.options import CompressedOptions


class Compressed(Stack):
    """A causal language model, as ``stack``, whose maps of ``model.map`` are ``CompressedLinear`` or
    ``CompressedEmbedding``."""

    def __init__(self, options: CompressedOptions, context: Any):
        # Blocks are whole until their maps are put in: only then may ranks divide them.
        super().__init__(options, attrs.evolve(context, built=lambda name, block: None))
        modules = dict(self.named_modules())
        for one in options.map:
            if one.module not in modules:
                raise RecipeError(f"model.map: there is no module {one.module!r}; a block's are named like "
                                  f"{next(name for name in modules if name.count('.') > 1)}")
            if modules[one.module] is None:
                raise RecipeError(f"model.map: {one.module} stands twice")
            with context.seeded(f"{one.module}/compressed"):
                replace(self, one.module, first_value(modules[one.module], one))
            modules[one.module] = None

    def simplified(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
        """``optional_contracts.Simplifies``: fewer kernels around products of integers on a GPU."""
        from muse_koopman.recorded import simplified

        return simplified(graph, inputs)
