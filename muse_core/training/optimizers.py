"""The optimizer of a recipe over a model's parameters, with state keyed by parameter name; and the checks of gradients,
weights and moments before an update."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.building import construct
from muse_core.component import Use
from muse_core.contracts import TrainedParameter
from muse_core.errors import PluginError, RecipeError
from muse_core.metrics.accumulator import together
from muse_core.model.roles import parameter_roles
from muse_core.plugins.raised import asked
from muse_core.recipe.schema import Train
from muse_core.training.rule_context import Calls, OptimizerContext
from muse_core.training.shards import divided_as, own_part


class Optimizers:
    """A recipe's update rule over the trained parameters: its torch optimisers stepped together, each group's rate its
    peak times a common factor, and their state keyed by parameter name."""

    def __init__(self, use: Use, rule: Any, parts: Sequence[torch.optim.Optimizer], names: dict[str, nn.Parameter]):
        self.use = use
        self.rule = rule
        self.parts = tuple(parts)
        self.names = names
        self.peaks = [[group["lr"] for group in part.param_groups] for part in parts]
        self.calls: Calls | None = None
        """Of a step whose passes are replayed; by these an optimiser that has ``step_recorded`` makes its update."""
        self._checked = False
        self._owners = {id(p): part for part in parts for group in part.param_groups for p in group["params"]}

    def step(self, factor: float) -> None:
        """One update at ``factor`` × the peak rates; gradients are used, not cleared."""
        for part, peaks in zip(self.parts, self.peaks):
            for group, peak in zip(part.param_groups, peaks):
                group["lr"] = peak * factor
            recorded = None if self.calls is None else getattr(part, "step_recorded", None)
            step = part.step if recorded is None else functools.partial(recorded, self.calls)
            asked(self.use, "updating the weights", step)
        if not self._checked:  # not first when a checkpoint is due
            self.state_dict()
            self._checked = True

    def zero_grad(self) -> None:
        for parameter in self.names.values():
            parameter.grad = None

    def forget(self) -> None:
        """Start the moments afresh."""
        for part in self.parts:
            part.state.clear()

    def held(self) -> Iterator[Tensor]:
        """Parameters and moments, where they are."""
        for parameter in self.names.values():
            yield parameter
            for value in self._state_of(parameter).values():
                if isinstance(value, Tensor) and value.ndim and value.is_floating_point():
                    yield value

    def state_dict(self) -> dict[str, Tensor]:
        """Moments as ``<key>/<parameter name>``; what a checkpoint keeps. Raises PluginError for an optimizer that
        keeps something else than it says."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.names.items():
            state = self._state_of(parameter)
            due = self.keys_of(name) if state else ()
            if set(state) != set(due):
                raise departed(self.use, f"it keeps {sorted(state)} for {name} where kept() says {sorted(due)}")
            for key in due:
                if not isinstance(state[key], Tensor):
                    raise departed(self.use, f"{key} of {name} is a {type(state[key]).__name__}, not a tensor")
                tensors[f"{key}/{name}"] = state[key]
        return tensors

    def expected_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` will hold after the first step: names, types and shapes, without the memory."""
        return {
            f"{key}/{name}": torch.zeros((), dtype=like.dtype).expand(like.shape)
            for name in self.names for key, like in self.due_of(name).items()
        }

    def due_of(self, name: str) -> Mapping[str, Tensor]:
        """What the optimiser of a parameter keeps for it, as tensors of that shape, type and device."""
        parameter = self.names[name]
        owner = self._owners[id(parameter)]
        kept: Mapping[str, Tensor] = asked(self.use, "asked what it keeps", lambda: self.rule.kept(owner, parameter))
        return kept

    def keys_of(self, name: str) -> tuple[str, ...]:
        """Names of what the optimiser of a parameter keeps for it."""
        return tuple(self.due_of(name))

    def kind_of(self, name: str) -> str:
        """Name of the optimiser of a parameter."""
        return type(self._owners[id(self.names[name])]).__name__

    def _state_of(self, parameter: nn.Parameter) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._owners[id(parameter)].state.get(parameter, {})
        return found

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``, for tensors that ``due.check_moments`` has found to fit."""
        self.forget()
        for full, value in tensors.items():
            key, name = full.split("/", 1)
            parameter = self.names[name]
            moved = divided_as(value, self.due_of(name)[key])
            self._owners[id(parameter)].state[parameter][key] = moved


def make_optimizers(
    model: nn.Module, train: Train, trainable: Callable[[str], bool], kernels: Any = None
) -> Optimizers:
    """The update rule of a recipe over the parameters that are trained, with the run's ``BoundKernels``. Raises
    RecipeError where there are none, and PluginError for an optimizer that does not keep its contract."""
    roles = parameter_roles(model)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad and trainable(name)}
    if not names:
        raise RecipeError("stages: nothing to train; no parameter is trainable in this stage")
    use: Use = train.optimizer
    rule = construct(use, OptimizerContext(
        learning_rate=train.learning_rate, weight_decay=train.weight_decay, kernels=kernels
    ))
    given = {name: TrainedParameter(parameter, roles[name]) for name, parameter in names.items()}
    parts = list(asked(use, "given the parameters", lambda: rule.build(given)))
    for part in parts:
        if not isinstance(part, torch.optim.Optimizer):
            raise departed(use, f"build gave a {type(part).__name__}, not a torch.optim.Optimizer")
    held = Counter(id(p) for part in parts for group in part.param_groups for p in group["params"])
    for name, parameter in names.items():
        if held.pop(id(parameter), 0) != 1:
            raise departed(use, f"build did not put {name} into exactly one group of one optimiser")
    if held:
        raise departed(use, "build holds parameters that it was not given")
    return Optimizers(use, rule, parts, names)


def departed(use: Use, what: str) -> PluginError:
    """The error for an optimizer that departs from ``contracts.Optimizer``."""
    return PluginError(f"{use.title} does not keep the contract: {what}")


@torch.no_grad()
def norms(gradients: Sequence[Tensor]) -> Tensor:
    """(len(gradients),) float64: the 2-norm of each, complex by modulus; not finite exactly where the gradient holds a
    NaN or an infinity. One pass over the gradients, no synchronisation.

    A finite fp32 gradient of 1e25 squares to infinity in fp32 and would be mistaken for damage; in float64 no square of
    a lower precision overflows, and gradients of float64 are scaled by their largest magnitude.
    """
    real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    if not any(g.dtype == torch.float64 for g in real):
        return torch.stack(torch._foreach_norm(real, 2, dtype=torch.float64)) if real else torch.zeros(0).double()
    found = []
    for g in real:
        scale = g.abs().amax().double() if g.numel() else g.new_zeros((), dtype=torch.float64)
        scale = torch.where(scale > 0, scale, 1.0)
        found.append((g.double() / scale).norm() * scale)
    return torch.stack(found)


def gradient_numbers(norms: Tensor) -> dict[str, Tensor]:
    """``gradient_norm``: global 2-norm; ``gradient_nonfinite``: how many tensors are damaged. Device scalars.

    ``norms`` (P,) float64, as ``norms`` gives them."""
    return {"gradient_norm": torch.linalg.vector_norm(norms), "gradient_nonfinite": (~norms.isfinite()).sum()}


@torch.no_grad()
def state_numbers(tensors: Iterable[Tensor]) -> dict[str, Tensor]:
    """``state_nonfinite``: how many of these weights and moments hold a NaN or an infinity, before they meet the
    optimiser: a NaN in a moment would be in the weights after it. A device scalar, no synchronisation.

    By the 2-norm in their own precision, a tenth of the time of the largest magnitude on a CPU. In fp32 a magnitude
    above 1e19 counts as damage too; gradients that reach the moments are clipped, so that none is near.
    """
    real = [torch.view_as_real(t) if t.is_complex() else t for t in tensors if t.numel()]
    if not real:
        return {"state_nonfinite": torch.zeros((), dtype=torch.float64)}
    return {"state_nonfinite": (~torch.isfinite(together(torch._foreach_norm(real, 2), real[0].device))).sum()}


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], norm: float, limit: float) -> None:
    """Scale all gradients so that the global norm, already read as ``norm``, is at most ``limit``; direction kept."""
    if norm > limit:
        gradients = [own_part(p.grad) for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)
