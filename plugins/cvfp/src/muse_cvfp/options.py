"""What recipes can say about the model and its stages. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import attrs
from attrs import field, validators

FRACTION = validators.and_(validators.ge(0.0), validators.le(1.0))
POSITIVE = validators.ge(1)


def _whose_model(recipe: Any, stage: str) -> Iterable[str]:
    """What a stage of this plugin asks of the rest of a recipe."""
    if recipe.model.name != "cvfp":
        yield f"{stage} trains the model cvfp, not {recipe.model.name}: write model.use = \"cvfp\""
    if recipe.data.order == "streams":
        yield f'{stage} has its own order of the text: write data.order = "permuted"'


@attrs.frozen(kw_only=True)
class CvfpOptions:
    """Contexts by a recurrence of ReLU blocks, z = ReLU(W[c; x] + b), c' = LN(c + z_:D), x' = LN(x + z_D:), and a token
    network of the same form under which they are held fixed; logits = Head[context; token output]."""

    width: int = field(default=128, validator=[validators.ge(1), validators.le(1 << 16)])
    """Width D of a context, and of a token embedding."""
    depth: int = field(default=6, validator=[validators.ge(1), validators.le(1024)])
    """Blocks of the context network, and of the token network."""
    hidden: int | None = None
    """Width of a block, which must be context + embedding = 2 D. Default: that."""
    layernorm_mix: float = field(default=1.0, validator=FRACTION)
    """m of (1 − m) v + m LN(v) in place of LN(v)."""

    def __attrs_post_init__(self) -> None:
        if self.hidden is not None and self.hidden != 2 * self.width:
            raise ValueError(
                f"hidden {self.hidden} must be context + embedding = {self.width} + {self.width} = {2 * self.width}: "
                "a block's output is split into what is added to either; leave hidden out"
            )


@attrs.frozen(kw_only=True)
class GruOptions:
    """A control: one gated recurrent unit between token embeddings and the head."""

    width: int = field(default=128, validator=[validators.ge(1), validators.le(1 << 16)])
    """Width of embeddings and of the state."""


@attrs.frozen(kw_only=True)
class SafetensorsOptions:
    """Initial values from a safetensors file, such as the token embeddings of another model. It is read whenever the
    run is opened, so keep the file where it is. A file that ``safetensors.numpy`` 0.8.0 wrote from an array stored by
    columns, as ``w.T``, holds other numbers; ``numpy.ascontiguousarray`` before it writes those that are meant."""

    source: str = field(validator=validators.min_len(1))
    """A .safetensors file, a folder with model.safetensors, or the name of a model on the Hugging Face hub, as
    ``gpt2``."""
    tensor: str | None = None
    """Name of the tensor. Default: the token embeddings under the names of the usual families, or the file's only
    matrix of the parameter's shape."""

    @staticmethod
    def examples(folder: Path) -> list[dict[str, Any]]:
        """What the conformance suite reads: the shapes that it asks for, in a file of its own."""
        import numpy as np
        from safetensors.numpy import save_file

        draw = np.random.default_rng(0)
        shapes = ((24, 8), (8, 24), (16, 16), (1, 16), (96, 32))
        path = folder / "small.safetensors"
        save_file({f"{n}x{m}": draw.normal(size=(n, m)).astype(np.float32) for n, m in shapes}, path)
        return [{"source": str(path)}]


@attrs.frozen(kw_only=True)
class TokenEmbeddingsOptions:
    """Trains token embeddings and the head's token half by a short language model of pairs: logits =
    Head[0; embedding]. Later stages keep the embeddings frozen."""

    steps: int = field(default=300, validator=POSITIVE)
    """Optimiser steps."""
    learning_rate: float = field(default=1e-2, validator=validators.gt(0.0))
    """Peak learning rate."""

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from _whose_model(recipe, "token-embeddings")


@attrs.frozen(kw_only=True)
class FixedPointOptions:
    """Trains the context network so that its contexts are a stable fixed point of varied directions. Iteration 0 reads
    the text token by token; each later one takes all contexts from those of the iteration before, at once."""

    tokens: int = field(default=6400, validator=validators.ge(2))
    """Training tokens N, the first of the training text."""
    validation_tokens: int = field(default=1280, validator=validators.ge(2))
    """Validation tokens of the checks, the first of the validation text that keep the data policy."""
    iterations: int = field(default=12, validator=validators.ge(2))
    """Parallel iterations K at most."""
    tokens_per_step: int = field(default=1600, validator=validators.ge(2))
    """Tokens of an optimiser step, at most N, which makes an iteration one step."""
    learning_rate: float = field(default=1e-3, validator=validators.gt(0.0))
    """Peak learning rate."""
    diversity_weight: float = field(default=0.9, validator=FRACTION)
    """w of the loss (1 − w) · MSE(C_k, C_{k−1}) + w · diversity."""
    diversity: Literal["covariance", "mean-deviation"] = "covariance"
    """covariance: what keeps the contexts' covariance near the identity. mean-deviation: −‖C − mean‖_F / N, the
    notes' formula; LN bounds it by √(D / N), which random weights nearly reach, and contexts on a single line reach
    it as well, so it saturates at the start and cannot ask for rank."""
    covariance: Literal["vicreg", "log-det"] = "vicreg"
    """vicreg: the hinge on deviations below 1 and the squared covariances (Bardes et al. 2022). log-det: −log det(Σ +
    εI) / D, which ends with higher rank and slower convergence (docs/results/cvfp.md)."""
    carry: Literal["learned", "wrap"] = "learned"
    """Context before a document's first token. learned: c₀. wrap: the document's last context of the iteration before,
    the original design's form; never that of another document."""
    threshold: float = field(default=0.1, validator=validators.gt(0.0))
    """A token has converged when its mean squared difference is below."""
    early_stop: float = field(default=0.95, validator=FRACTION)
    """Share of training tokens that must have converged, by the difference of iterations and by the residual at frozen
    weights, for the stage to end early; iteration 1 does not count."""
    patience: int = field(default=3, validator=POSITIVE)
    """Iterations in a row that must reach it."""
    policy: Literal["leave-out", "refuse"] = "leave-out"
    """What becomes of validation passages with a token that training lacks or 13 words in a row that it has.
    leave-out: others take their place. refuse: an error that names the first. What is used keeps the policy either
    way."""
    auto_split: bool = False
    """Refused: cutting one stream of tokens at random puts neighbouring text on both sides."""

    def __attrs_post_init__(self) -> None:
        if self.auto_split:
            raise ValueError(
                "auto_split is refused: a random cut of one stream of tokens puts neighbouring text on both sides. "
                "Leave it out: documents are divided before tokenising, by data.validation, data.test and "
                "data.split_seed"
            )

    @property
    def slice(self) -> int:
        """Tokens of an optimiser step."""
        return min(self.tokens, self.tokens_per_step)

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from _whose_model(recipe, "fixed-point")


@attrs.frozen(kw_only=True)
class ContextFixedOptions:
    """Trains the token network and the head under contexts C* that the frozen context network gave once, kept on
    disk."""

    tokens: int = field(default=262_144, validator=validators.ge(2))
    """Training tokens whose contexts are kept, the first of the training text, in whole windows; 4 D bytes each."""
    steps: int | None = field(default=None, validator=validators.optional(POSITIVE))
    """Optimiser steps. Default: train.steps."""

    def problems(self, recipe: Any) -> Iterable[str]:
        yield from _whose_model(recipe, "context-fixed")
