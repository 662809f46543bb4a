"""Bytes of a model with its maps stored in this or that form, and the ranks or shares that reach a ratio."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from torch import nn

from muse_koopman.maps import CompressedLinear
from muse_koopman.storage import stored_bytes

HALVINGS = 60
WIDEST, NARROWEST = 1e-3, 1e9
"""ε that keeps modes down to e^−1500 of the largest, and ε that keeps those that equal it."""


@attrs.frozen
class Shape:
    """Of a map."""

    rows: int
    columns: int

    @property
    def full(self) -> int:
        return min(self.rows, self.columns)

    def whole(self, store: str = "fp32") -> int:
        """Bytes of the matrix."""
        return stored_bytes(self.rows, self.columns, store)

    def factored(self, rank: int, store: str = "fp32") -> int:
        """Bytes of two factors."""
        return stored_bytes(self.rows, rank, store) + stored_bytes(rank, self.columns, store)

    def best(self, rank: int, store: str = "fp32") -> int:
        """Bytes at a rank: of the matrix where the factors would be no smaller."""
        return min(self.whole(store), self.factored(rank, store))

    def sparse(self, share: float) -> int:
        return stored_bytes(self.rows, self.columns, "sparse", self.kept(share))

    def kept(self, share: float) -> int:
        return max(1, int(share * self.rows * self.columns))


def shape_of(module: nn.Module) -> Shape:
    """(rows, columns) of a linear map or an embedding."""
    if isinstance(module, nn.Embedding):
        return Shape(module.num_embeddings, module.embedding_dim)
    return Shape(module.out_features, module.in_features)


def model_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def uncompressed_bytes(model: nn.Module) -> int:
    """The same with every compressed map a matrix in fp32: what a ratio is measured against."""
    total = model_bytes(model)
    for module in model.modules():
        own = getattr(module, "table", None) or module
        if isinstance(module, CompressedLinear):
            parts = [module.left] + ([] if module.right is None else [module.right])
            total += shape_of(module).whole() - sum(map(model_bytes, parts))
        elif own is not module:
            total += Shape(own.rows, own.columns).whole() - model_bytes(own)
    return total


def bisected(bytes_at: Callable[[float], int], goal: float, low: float, high: float) -> float | None:
    """The least value in [low, high], on a log scale, at which no more than ``goal`` bytes are left, where more of it
    leaves fewer; None when even ``high`` leaves more."""
    if bytes_at(high) > goal:
        return None
    if bytes_at(low) <= goal:
        return low
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        if bytes_at(middle) <= goal:
            high = middle
        else:
            low = middle
    return high


def least_bytes(method: str, shapes: Mapping[str, Shape], store: str, embedding: Shape | None) -> int:
    """Bytes of the maps, and of the embedding where one is given, at the strongest that a method can do."""
    if method in ("int8", "int4"):
        maps = sum(shape.whole(method) for shape in shapes.values())
        return maps + (0 if embedding is None else embedding.whole("int8"))
    if method == "magnitude":
        return sum(min(shape.whole(), shape.sparse(0.0)) for shape in shapes.values())
    least = sum(shape.best(2 if method == "koopman" else 1, store) for shape in shapes.values())
    return least + (0 if embedding is None else embedding.whole("fp32" if store == "fp32" else "int8"))
