"""Linear maps and embeddings whose matrices are stored smaller."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.errors import RecipeError
from muse_koopman.options import MapOptions
from muse_koopman.storage import Stored, stored


class CompressedLinear(nn.Module):
    """y = W x + b with W = left, or left · right of a given rank, each a stored matrix."""

    def __init__(self, left: Stored, right: Stored | None = None, bias: Tensor | None = None):
        super().__init__()
        self.right, self.left = right, left
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @property
    def in_features(self) -> int:
        return self.left.columns if self.right is None else self.right.columns

    @property
    def out_features(self) -> int:
        return self.left.rows

    @property
    def weight(self) -> Tensor:
        """W (outputs, inputs), for layers that read the matrix in place of calling the map."""
        return self.left.dense() if self.right is None else self.left.dense() @ self.right.dense()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.left(x if self.right is None else self.right(x))
        return y if self.bias is None else y + self.bias.to(y.dtype)


class CompressedEmbedding(nn.Module):
    """Rows of a stored matrix."""

    def __init__(self, table: Stored):
        super().__init__()
        self.table = table
        self.num_embeddings, self.embedding_dim = table.rows, table.columns

    @property
    def weight(self) -> Tensor:
        """(vocabulary, width), for a tied head."""
        return self.table.dense()

    def forward(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight)

    def flops_per_token(self) -> int:
        """Of the tied head, as an embedding of torch counts."""
        return self.table.flops_per_token()


def first_value(module: nn.Module, options: MapOptions) -> nn.Module:
    """A module of torch in the form that its options say, from its own first values: random factors of the same scale
    for a rank, its own entries otherwise. Weights of a checkpoint replace them. Raises RecipeError."""
    if isinstance(module, nn.Embedding):
        if options.rank is not None:
            raise RecipeError(f"model.map: {options.module} is an embedding and has no rank")
        return CompressedEmbedding(stored(module.weight, options.store, options.kept))
    if type(module) is not nn.Linear:
        kind = type(module).__name__
        raise RecipeError(f"model.map: {options.module} is a {kind}; maps are linear maps or embeddings")
    if options.rank is None:
        return CompressedLinear(stored(module.weight, options.store, options.kept), None, module.bias)
    rank, (outputs, inputs) = options.rank, module.weight.shape
    if rank > min(outputs, inputs):
        raise RecipeError(f"model.map: {options.module} is {outputs} × {inputs} and has no rank {rank}")
    left = torch.randn(outputs, rank) * (module.weight.detach().std() * (inputs / rank) ** 0.5)
    right = torch.randn(rank, inputs) * inputs**-0.5
    return CompressedLinear(stored(left, options.store), stored(right, options.store), module.bias)


def replace(model: nn.Module, name: str, module: Any) -> None:
    """Put another module in the place of the one of this full name."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)
