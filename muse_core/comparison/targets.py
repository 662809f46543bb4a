"""What ``muse cost`` measures: recipes with fresh weights and runs with their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from muse_core.building import build_model
from muse_core.comparison.cost import training_cost
from muse_core.errors import RecipeError
from muse_core.evaluation.reach import gradient_reach
from muse_core.model.flops import parameter_count
from muse_core.model.kernels import BoundKernels
from muse_core.model.precision import Precision, choose_device, choose_precision
from muse_core.model.products import require_products
from muse_core.out_of_memory import ran_out
from muse_core.recipe import read_recipe
from muse_core.recipe.schema import Recipe
from muse_core.training.trained import Say, open_trained, silent

DOCUMENTS = 8
"""Stretches of text over which the reach is taken."""


@attrs.frozen(kw_only=True, eq=False)
class Target:
    """A model and how it computes. The model waits on the CPU, so that a peak of memory is one target's own."""

    path: Path
    recipe: Recipe
    model: nn.Module
    precision: Precision
    kernels: BoundKernels
    weights: str
    """Where they come from."""
    held_out: Callable[[], np.ndarray] | None
    """Reads held-out tokens; None for fresh weights."""

    @property
    def parameters(self) -> int:
        return parameter_count(self.model)

    @property
    def device_name(self) -> str:
        device = self.precision.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)

    @property
    def versions(self) -> str:
        return f"torch {torch.__version__}"


def open_target(path: Path, overrides: Sequence[str], vocabulary: int, say: Say = silent) -> Target:
    """A recipe file or a run directory. ``say`` hears what is to know about a run.

    Raises RecipeError or StorageError.
    """
    if path.is_dir():
        others = [text for text in overrides if not text.startswith("train.device=")]
        if others:
            raise RecipeError(f"--set {others[0]}: {path} is a run, whose recipe stays what it is")
        device = overrides[-1].partition("=")[2].strip('"') if overrides else None  # as for recipes the last one counts
        setup, step = open_trained(path, device=device, say=say)
        return Target(
            path=path, recipe=setup.recipe, model=setup.model.cpu(), precision=setup.precision,
            kernels=setup.kernels, weights=f"weights of step {step}",
            held_out=lambda: setup.corpus.split("validation").tokens,
        )
    checked = read_recipe(path, overrides)
    device = choose_device(checked.recipe.train.device)
    require_products(device)
    precision = choose_precision(device, checked.recipe.train.precision)
    model, kernels = build_model(
        checked.recipe, checked.registry, vocabulary_size=vocabulary, device=device, dtype=precision.dtype
    )
    return Target(
        path=path, recipe=checked.recipe, model=model.cpu(), precision=precision, kernels=kernels,
        weights="fresh weights", held_out=None,
    )


def measure_step(target: Target, length: int, tokens: int | None, repeats: int) -> dict[str, Any]:
    """Numbers of a training step, or ``failed`` where the device's memory ran out. The target's weights change."""
    rows = max(1, (tokens or length) // length)
    try:
        target.model.to(target.precision.device)
        found = training_cost(
            target.model, target.recipe, target.precision, rows=rows, length=length, repeats=repeats,
            kernels=target.kernels,
        )
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        return {"length": length, "failed": f"does not fit with {rows} rows"}
    finally:
        for parameter in target.model.parameters():
            parameter.grad = None
        _put_away(target)
    return attrs.asdict(found) | {"tokens_per_second": found.tokens_per_second}


def measure_reach(target: Target, length: int) -> dict[str, Any]:
    """``reach``, ``low`` and ``high``: median, least and largest ``gradient_reach`` of stretches of ``length`` tokens,
    spread evenly over the held-out text; random tokens without one. Raises RecipeError for a text that is shorter."""
    text = None if target.held_out is None else target.held_out()
    if text is None:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(target.model.vocabulary_size, (DOCUMENTS, length + 1), generator=generator)  # type: ignore[arg-type]
    else:
        room = len(text) - length - 1
        if room < 0:
            raise RecipeError(f"--reach {length}: {target.path} holds {len(text)} tokens of text out, too few")
        starts = np.linspace(0, room, DOCUMENTS).astype(np.int64)
        stretches = np.stack([text[start : start + length + 1] for start in starts])
        ids = torch.from_numpy(stretches.astype(np.int64))
    target.model.to(target.precision.device)
    ratios = torch.cat([gradient_reach(target.model, row[None], target.precision) for row in ids])
    _put_away(target)
    return {
        "weights": target.weights, "tokens": length, "documents": DOCUMENTS, "reach": float(ratios.quantile(0.5)),
        "low": float(ratios.min()), "high": float(ratios.max()),
    }


def _put_away(target: Target) -> None:
    target.model.cpu()
    if target.precision.device.type == "cuda":
        torch.cuda.empty_cache()
