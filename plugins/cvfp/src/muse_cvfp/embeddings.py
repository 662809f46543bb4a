"""Where token embeddings come from: a file of another model, or a short language model of pairs. (Random orthogonal
ones are the initializer ``orthogonal``.)"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import SafetensorError, safe_open
from torch import Generator, Tensor

from muse_core.contracts import Batch, Result, State
from muse_core.errors import DataError, RecipeError
from muse_core.evaluation.cross_entropy import cross_entropy
from muse_cvfp.asked import contextual
from muse_cvfp.options import SafetensorsOptions, TokenEmbeddingsOptions

KNOWN = (
    "wte.weight",
    "transformer.wte.weight",
    "model.embed_tokens.weight",
    "gpt_neox.embed_in.weight",
    "embeddings.word_embeddings.weight",
    "bert.embeddings.word_embeddings.weight",
    "embedding.weight",
)
"""Names of token embeddings in usual families: GPT-2, Llama and its like, GPT-NeoX, BERT, this one."""


class Safetensors:
    """The tensor of a file in place of a parameter. Raises DataError when the file cannot be had or read, and
    RecipeError when no tensor of it fits."""

    def __init__(self, options: SafetensorsOptions, context: Any):
        self.options = options

    def __call__(self, tensor: Tensor, *, role: str, generator: Generator) -> Tensor:
        path = self.path()
        try:
            with safe_open(path, framework="pt") as file:
                shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
                return file.get_tensor(self._name(shapes, tuple(tensor.shape))).to(torch.float32)
        except (OSError, SafetensorError) as error:
            raise DataError(
                f"{path}: cannot be read as safetensors ({error}) - name a .safetensors file, a folder with "
                "model.safetensors, or a model on the hub"
            ) from error

    def path(self) -> Path:
        """The file, fetched from the hub where ``source`` is not a local path."""
        local = Path(self.options.source).expanduser()
        if local.is_dir():
            return local / "model.safetensors"
        if local.exists() or local.suffix == ".safetensors":
            return local
        try:
            from huggingface_hub import hf_hub_download
        except ModuleNotFoundError as error:
            raise DataError(
                f"safetensors: {self.options.source} is not a local file, and the hub needs huggingface_hub: "
                "pip install muse-cvfp[hub], or give a local file"
            ) from error
        try:
            return Path(hf_hub_download(self.options.source, "model.safetensors"))
        # The library lets its HTTP client's exceptions through, which differ between its versions.
        except Exception as error:
            raise DataError(
                f"safetensors: {self.options.source} is not a local file, and the hub does not give it ({error}) - "
                'give a local .safetensors file, or train embeddings with the stage "token-embeddings"'
            ) from error

    def _name(self, shapes: dict[str, tuple[int, ...]], wanted: tuple[int, ...]) -> str:
        given = self.options.tensor
        if given is not None and given not in shapes:
            raise RecipeError(f"safetensors: {self.options.source} has no tensor {given!r}; {_listed(shapes)}")
        fitting = [name for name, shape in shapes.items() if shape == wanted]
        known = [name for name in KNOWN if name in shapes]
        name = given or (known[0] if known else fitting[0] if len(fitting) == 1 else None)
        if name is None:
            raise RecipeError(
                f"safetensors: {len(fitting)} tensors of {self.options.source} have the shape {list(wanted)} - say "
                f"which with tensor; {_listed(shapes)}"
            )
        if shapes[name] != wanted:
            raise RecipeError(
                f"safetensors: {name} of {self.options.source} has shape {list(shapes[name])}, and the parameter "
                f"{list(wanted)} (vocabulary × width): take that model's tokenizer and its width"
            )
        return name


def _listed(shapes: dict[str, tuple[int, ...]]) -> str:
    some = ", ".join(f"{name} {list(shape)}" for name, shape in list(shapes.items())[:6])
    return f"it holds {some}{', …' if len(shapes) > 6 else ''}"


class Pairs:
    """The objective: cross-entropy of the next token from Head[0; LN(E)], a language model of pairs of tokens."""

    def __call__(self, model: Any, batch: Batch, state: State) -> Result:
        x = model.embedded(batch.inputs)
        entropy = cross_entropy(model, torch.cat((torch.zeros_like(x), x), -1), batch)
        return Result(entropy, {"cross_entropy": entropy.detach()}, {}, None)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state


class TokenEmbeddings:
    """Stage ``token-embeddings``: reads the run's batches as they are."""

    def __init__(self, options: TokenEmbeddingsOptions, context: Any):
        self.options = options
        self.setup = context

    def settings(self, train: Any) -> Any:
        """``OwnPlan``. No decay: the head's context half, which has no gradient yet, would shrink."""
        return attrs.evolve(
            train,
            steps=self.options.steps,
            learning_rate=self.options.learning_rate,
            warmup_steps=min(train.warmup_steps, max(1, self.options.steps // 10)),
            weight_decay=0.0,
            cuda_graph=False,
        )

    def batches(self, run: Path) -> Any:
        return self.setup.training_data()

    def objective(self, model: Any, data: Any) -> Pairs:
        contextual(model, "token-embeddings")
        return Pairs()

    def trainable(self, name: str) -> bool:
        return name.startswith(("embedding.", "head."))

    def finish(self, model: Any) -> None:
        return None
