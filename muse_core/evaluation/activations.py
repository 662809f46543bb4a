"""What the parts of a model give on a text, for looking into it.

Letters: N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.errors import RecipeError
from muse_core.evaluation.scoring import Reader
from muse_core.plugins.near import near

HIDDEN = "hidden"
"""Name of what the head reads."""


def default_names(model: nn.Module) -> list[str]:
    """The embedding, every block of a ``Stack`` and what the head reads; of other models that alone."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList) or not isinstance(getattr(model, "embedding", None), nn.Module):
        return [HIDDEN]
    return ["embedding", *(f"blocks.{index}" for index in range(len(blocks))), HIDDEN]


def activations(setup: Any, ids: Sequence[int], names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Name → (N, …) fp32 on the CPU, for ids read as one document, in segments with the state carried.

    ``names`` are those of modules, as ``model.named_modules()`` has them: of a block the residual stream after it, of a
    layer what it adds to the stream, of another module its output; ``hidden`` is what the head reads. By default
    ``default_names``. Raises RecipeError for a module that is not there, or that gives no value for each token, and
    where none is named.
    """
    model = setup.model
    chosen = list(default_names(model) if names is None else names)
    if not chosen:
        raise RecipeError("no module is named - name some, or leave modules out for the stream after each block")
    found: dict[str, list[Tensor]] = {name: [] for name in chosen}
    with _watched(model, found):
        for hidden, _ in Reader(setup).read(torch.tensor([list(ids)])):
            if HIDDEN in found:
                found[HIDDEN].append(_of_tokens(HIDDEN, hidden))
            _require_all(found, hidden.shape[1])
    return {name: torch.cat(pieces) for name, pieces in found.items()}


@contextmanager
def _watched(model: nn.Module, found: dict[str, list[Tensor]]) -> Iterator[None]:
    """Every call of a named module is kept within."""
    modules = dict(model.named_modules())
    wrong = [name for name in found if name != HIDDEN and name not in modules]
    if wrong:
        close = near(wrong[0], [HIDDEN, *filter(None, modules)])
        hint = f"did you mean {close!r}?" if close else "model.named_modules() has all"
        raise RecipeError(f"the model has no module {wrong[0]!r} - {hint}")
    hooks = []
    try:
        for name in found:
            if name != HIDDEN:
                hooks.append(modules[name].register_forward_hook(
                    lambda module, given, output, name=name: found[name].append(_of_tokens(name, output))
                ))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _of_tokens(name: str, output: Any) -> Tensor:
    """(N, …) of what a module returned for one row."""
    value = getattr(output, "x", getattr(output, "update", output))  # BlockOutput, LayerOutput
    if not isinstance(value, Tensor) or value.dim() < 2 or value.shape[0] != 1:
        raise RecipeError(f"{name} gives {_told(value)} and no value for each token - ask for a block or a layer")
    return value[0].detach().float().cpu()


def _require_all(found: dict[str, list[Tensor]], tokens: int) -> None:
    """Every module was called once with every token of the segment."""
    counts = {name: len(pieces) for name, pieces in found.items()}
    segments = max(counts.values())
    for name, pieces in found.items():
        if counts[name] != segments or not pieces or pieces[-1].shape[0] != tokens:
            raise RecipeError(
                f"{name} was not called once with every token: tokens leave this model early, are routed, or take "
                f"another way - ask for {HIDDEN!r}, or for a module around it"
            )


def _told(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
