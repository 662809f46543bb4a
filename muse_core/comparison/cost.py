"""What a training step costs: time, memory, and what the memory layers hold of it.

Letters: B batch rows, N tokens.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from muse_core.component import load, walk
from muse_core.contracts import Batch, State, Tokens
from muse_core.data.batches import to_device
from muse_core.evaluation.cross_entropy import like
from muse_core.metrics.accumulator import MetricAccumulator, Packed, read
from muse_core.model.kernels import operation_of
from muse_core.model.precision import Precision
from muse_core.recipe.schema import Recipe
from muse_core.training.compilation import compiled, forget_others
from muse_core.training.cuda_graph import Passes, RecordedPasses
from muse_core.training.forward import detached
from muse_core.training.objectives import NextToken
from muse_core.training.optimizers import clip, gradient_numbers, make_optimizers, norms
from muse_core.training.recordable import require_recordable, require_steady
from muse_core.training.rounding import rounding_of


@attrs.frozen(kw_only=True)
class Cost:
    """Of one training step: forward, backward, clipping and update."""

    rows: int
    length: int
    seconds: float
    """Median over the repeats, after the warm-up."""
    peak_bytes: int | None
    """Most memory that tensors took at any time, weights and moments included; None where the device does not say."""
    state_bytes: int
    """State that the model carries after the last token, all rows."""
    memory_bytes: int | None
    """What the memory layers' forward passes left allocated for the backward pass, their inputs to it included: an
    upper bound of what fast weights take in training. None as above, and for a compiled model."""

    fast_weights_bytes: int | None
    """What the operation fast_weights alone keeps for the backward pass, its inputs among it: memories that lie in no
    other sum, each counted once. None where no layer uses it, and for a compiled model."""

    @property
    def tokens_per_second(self) -> float:
        return self.rows * self.length / self.seconds


def training_cost(
    model: nn.Module, recipe: Recipe, precision: Precision, *, rows: int, length: int, warmup: int = 3,
    repeats: int = 5, kernels: Any = None,
) -> Cost:
    """Train ``model`` for a few steps on random tokens, ``rows`` documents of ``length`` tokens; its weights change.

    Compiled where the recipe says so, for this length alone; what memory layers hold is not measured then.
    ``kernels``: what ``build_model`` bound.
    """
    step, states = training_step(model, recipe, precision, rows=rows, length=length, kernels=kernels)
    device, compiles = precision.device, recipe.train.compile
    held: list[int] = []
    for _ in range(warmup):
        step()
    kept: dict[int, int] | None = None
    if not compiles:
        layers = memory_layers(model, recipe)
        with _allocated_by(layers, device, held), kept_by("fast_weights", layers) as kept:
            step()
    _start_counting(device)
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        step()
        _wait(device)
        times.append(time.perf_counter() - began)
    on_gpu = device.type == "cuda"
    return Cost(
        rows=rows,
        length=length,
        seconds=statistics.median(times),
        peak_bytes=torch.cuda.max_memory_allocated(device) if on_gpu else None,
        state_bytes=sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(states) if torch.is_tensor(leaf)),
        memory_bytes=sum(held) if on_gpu and not compiles else None,
        fast_weights_bytes=sum(kept.values()) if kept else None,
    )


def training_step(
    model: nn.Module, recipe: Recipe, precision: Precision, *, rows: int, length: int, kernels: Any = None
) -> tuple[Callable[[], None], list[Any]]:
    """One step of training on random tokens, ``rows`` documents of ``length`` tokens, and a list in which each step
    leaves the state after the last token. Compiled where the recipe says so, for this length alone. ``kernels``: what
    ``build_model`` bound."""
    vocabulary: int = model.vocabulary_size  # type: ignore[assignment]
    device = precision.device
    ids = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(length).expand(rows, length)
    batch = to_device(
        Batch(
            ids[:, :-1], ids[:, 1:], torch.ones(rows, length, dtype=torch.bool), Tokens(positions),
            targets_per_token=1.0,  # as the loop says it, so that no step reads the mask from the device
        ),
        device,
    )
    model.to(device)
    optimizers = make_optimizers(model, recipe.train, lambda name: True, kernels)
    objective, parameters = NextToken(), list(optimizers.names.values())
    if recipe.train.compile:
        forget_others(model, rows, length)
    forward_model = compiled(model, recipe.train.compile, half=precision.autocast)
    states: list[Any] = [None]
    model.train()

    def gradients(pieces: Sequence[Batch], carried: Sequence[State], whole: Tensor) -> tuple[Packed, list[State]]:
        with precision():
            result = objective(forward_model, pieces[0], carried[0])
        (result.total / like(result.total, whole)).backward()
        accumulator = MetricAccumulator()
        accumulator.add_result(result, pieces[0].loss_mask.sum())
        return accumulator.packed(), [detached(result.state)]

    passes: Passes = gradients
    if recipe.train.cuda_graph:
        require_recordable(recipe, 1)
        require_steady(model, objective)
        passes = RecordedPasses(
            gradients, optimizers.names, rounding=rounding_of(precision),
            recomputes=recipe.train.activation_checkpointing,
        )

    def step() -> None:
        whole = torch.full((), rows * length, dtype=torch.float64, device=device)
        packed, states[:] = passes([batch], [None], whole)
        sizes = norms([p.grad for p in parameters if p.grad is not None])
        numbers = read(packed.with_values(gradient_numbers(sizes)).numbers())
        clip(parameters, numbers["gradient_norm"], recipe.train.clip_norm)
        optimizers.step(1.0)
        optimizers.zero_grad()

    return step, states


def memory_layers(model: nn.Module, recipe: Recipe) -> list[nn.Module]:
    """The modules of the recipe's memory layers."""
    kinds = tuple({load(use.implementation) for use in walk(recipe.model.options) if use.kind == "memory layer"})
    return [module for module in model.modules() if kinds and isinstance(module, kinds)]


@contextlib.contextmanager
def _allocated_by(modules: list[nn.Module], device: torch.device, held: list[int]) -> Iterator[None]:
    """Appends to ``held`` what each forward pass of the modules leaves allocated."""
    if device.type != "cuda":
        yield
        return
    before: list[int] = []
    handles = []
    for module in modules:
        handles.append(
            module.register_forward_pre_hook(lambda *_: before.append(torch.cuda.memory_allocated(device)))
        )
        handles.append(
            module.register_forward_hook(lambda *_: held.append(torch.cuda.memory_allocated(device) - before.pop()))
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def kept_by(operation: str, modules: list[nn.Module]) -> Iterator[dict[int, int]]:
    """Yields address → bytes of every memory that calls of a kernel operation keep for the backward pass.

    The kernels are found as attributes of the modules, where layers keep what ``context.kernels.bind`` gave them.
    """
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        found[memory.data_ptr()] = memory.nbytes()
        return tensor

    def watched(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                return kernel(*arguments, **named)

        return call

    kernels = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if operation_of(value) == operation
    ]
    for module, name, kernel in kernels:
        setattr(module, name, watched(kernel))
    try:
        yield found
    finally:
        for module, name, kernel in kernels:
            setattr(module, name, kernel)


def _start_counting(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
