"""Options of the compressed model and of the stages that make it. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, validators

from muse_core.component import RecipePath, UseOptimizer
from muse_core.model.options import StackOptions

GROUP = 128
"""Entries of a row that share a scale in int4."""


@attrs.frozen(kw_only=True)
class MapOptions:
    """How one linear map, or the embedding, is kept."""

    module: str
    """Full name of the module, as ``blocks.0.feed-forward.input``."""
    rank: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """Two factors of this rank in place of the matrix."""
    store: Literal["fp32", "int8", "int4", "sparse"] = "fp32"
    """fp32: every entry. int8: a scale for each row. int4: a scale for each group of entries of a row. sparse: the
    entries that are kept and a bit for each place."""
    kept: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    """Entries that a sparse matrix keeps."""

    def __attrs_post_init__(self) -> None:
        if (self.store == "sparse") != (self.kept is not None):
            raise ValueError('kept goes with store = "sparse", which needs it')
        if self.store == "sparse" and self.rank is not None:
            raise ValueError("a sparse map has no rank")


@attrs.frozen(kw_only=True)
class CompressedOptions(StackOptions):
    """The stack with some of its linear maps stored smaller, as ``koopman-compress`` writes it."""

    map: tuple[MapOptions, ...] = ()
    """The maps that are not kept as a matrix in fp32."""


@attrs.frozen(kw_only=True)
class CompressOptions:
    """Stores the linear maps of a trained stack smaller: a new recipe and weights, with a table of what became of each
    map."""

    method: Literal["whitened", "koopman", "svd", "magnitude", "int8", "int4"] = "whitened"
    """whitened: modes of the map fitted on state pairs, from its singular values on whitened inputs. koopman: from an
    ordered real Schur form where the map is square. svd: singular values of the matrix. magnitude: the largest entries.
    int8, int4: every entry, rounded."""
    ratio: float | None = field(
        default=None, validator=validators.optional([validators.gt(1.0), validators.le(1000.0)])
    )
    """Bytes of the weights with every map a matrix in fp32, over bytes of the result. Default: 2, or what int8 and int4
    give."""
    then: Literal["none", "int8", "int4"] = "none"
    """How a later stage will store the factors; ranks are chosen so that the ratio holds then."""
    tokens: int = field(default=16_384, validator=validators.ge(64))
    """Training tokens whose states the maps are fitted on; a fifth of them is held out for the errors of the table."""
    ridge: float = field(default=1e-6, validator=[validators.gt(0.0), validators.lt(1.0)])
    """Ridge of the least squares, as a share of the mean square of the inputs."""
    least: int = field(default=32, validator=validators.ge(2))
    """Maps with fewer rows or columns stay as they are."""

    @property
    def goal(self) -> float | None:
        """The ratio that is due; None where the method alone decides it."""
        if self.ratio is None and self.method not in ("int8", "int4"):
            return 2.0
        return self.ratio

    @property
    def store(self) -> str:
        """How the factors will be stored at last."""
        return "fp32" if self.then == "none" else self.then


@attrs.frozen(kw_only=True)
class DistilOptions:
    """Trains the compressed model on the text with its teacher beside it: cross-entropy, the teacher's softened
    distribution, and the distance of their spectral measures."""

    teacher: RecipePath
    """Run directory of the model that was compressed, relative to the recipe."""
    steps: int = field(default=200, validator=validators.ge(1))
    """Optimiser steps."""
    optimizer: UseOptimizer = "adamw"
    """Update rule."""
    learning_rate: float = field(default=1e-3, validator=validators.gt(0.0))
    """Peak learning rate."""
    temperature: float = field(default=2.0, validator=[validators.gt(0.0), validators.le(100.0)])
    """Softening of both distributions; the term is multiplied by its square (Hinton et al. 2015)."""
    imitation: float = field(default=1.0, validator=validators.ge(0.0))
    """Weight of the teacher's distribution."""
    spectral: float = field(default=0.1, validator=validators.ge(0.0))
    """Weight of the distance of spectral measures, in nats a token per unit of energy."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite builds, since ``teacher`` has no default."""
        return [{"teacher": str(folder / "run")}]
