"""AdamW, or Muon for hidden matrices beside AdamW for the rest, with state keyed by parameter name; and the checks of
gradients, weights and moments before an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.errors import RecipeError
from muse_core.model.precision import computes_bf16
from muse_core.model.roles import DYNAMICS, EMBEDDING, MATRIX, VECTOR, parameter_roles
from muse_core.recipe import schema
from muse_core.recipe.schema import Train
from muse_core.training.shards import divided_as, is_divided, own_part, whole

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic a x + b x³ + c x⁵; five steps bring singular values into [0.68, 1.13]. Source: mathematics §3."""
STEPS = 5
SMALLEST = 1e-7


def newton_schulz(matrix: Tensor) -> Tensor:
    """(rows, columns) → the same shape with singular values near 1 and the same singular vectors.

    In bf16 where the processor has such instructions, else in the matrix's own precision: emulated bf16 takes five
    times as long as fp32 on a CPU, and this is most of an update.
    """
    x = matrix.bfloat16() if computes_bf16(matrix.device) else matrix
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp_min(SMALLEST)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """W ← (1 − lr·decay) W − lr·√max(1, rows/columns)·NS(g + momentum·(m − g)) with m ← m + (1 − momentum)(g − m).

    Parameters are real matrices. State: ``momentum_buffer``, m. Source: Jordan et al., "Muon: an optimizer for hidden
    layers in neural networks", 2024.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, lr: float, momentum: float, weight_decay: float):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update from the gradients as they are; ``closure`` is not used."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                mean = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
                # The singular vectors are those of the whole matrix: one that is divided is gathered and divided again.
                update = newton_schulz(whole(gradient.lerp(mean, momentum)))
                if is_divided(gradient):
                    update = divided_as(update, gradient)
                rows, columns = parameter.shape
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update, alpha=-rate * math.sqrt(max(1.0, rows / columns)))


DECAYED = (MATRIX, EMBEDDING)
KEPT = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}
"""What an optimiser keeps for a parameter once it has updated it."""


class Optimizers:
    """One or two torch optimisers stepped together; each group's rate is its peak times a common factor."""

    def __init__(self, parts: list[torch.optim.Optimizer], names: dict[str, nn.Parameter]):
        self.parts = parts
        self.names = names
        self.peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, factor: float) -> None:
        """One update at ``factor`` × the peak rates; gradients are used, not cleared."""
        for part, peaks in zip(self.parts, self.peaks):
            for group, peak in zip(part.param_groups, peaks):
                group["lr"] = peak * factor
            part.step()

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
            for part in self.parts:
                for key, value in part.state.get(parameter, {}).items():
                    if isinstance(value, Tensor) and key != "step":
                        yield value

    def state_dict(self) -> dict[str, Tensor]:
        """Moments as ``<key>/<parameter name>``; what a checkpoint keeps."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.names.items():
            for part in self.parts:
                for key, value in part.state.get(parameter, {}).items():
                    tensors[f"{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
        return tensors

    def expected_tensors(self) -> dict[str, Tensor]:
        """What ``state_dict`` will hold after the first step: names, types and shapes, without the memory."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.names.items():
            for key in self.keys_of(name):
                scalar = key == "step"
                like = torch.zeros((), dtype=torch.float32 if scalar else parameter.dtype)
                tensors[f"{key}/{name}"] = like if scalar else like.expand(parameter.shape)
        return tensors

    def keys_of(self, name: str) -> tuple[str, ...]:
        """What the optimiser of a parameter keeps for it."""
        return KEPT[type(self._owner(name))]

    def kind_of(self, name: str) -> str:
        """Name of the optimiser of a parameter."""
        return type(self._owner(name)).__name__

    def _owner(self, name: str) -> torch.optim.Optimizer:
        wanted = self.names[name]
        return next(part for part in self.parts for group in part.param_groups for p in group["params"] if p is wanted)

    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``state_dict``, for tensors that ``due.check_moments`` has found to fit."""
        self.forget()
        owner = {id(p): part for part in self.parts for group in part.param_groups for p in group["params"]}
        for full, value in tensors.items():
            key, name = full.split("/", 1)
            parameter = self.names[name]
            keep_on_cpu = key == "step"
            moved = value.clone() if keep_on_cpu else divided_as(value, parameter)
            owner[id(parameter)].state[parameter][key] = moved


def make_optimizers(model: nn.Module, train: Train, trainable: Callable[[str], bool]) -> Optimizers:
    """Group the trainable parameters by role: matrices and embeddings decay, vectors and dynamics do not."""
    roles = parameter_roles(model)
    names = {name: p for name, p in model.named_parameters() if p.requires_grad and trainable(name)}
    if not names:
        raise RecipeError("stages: nothing to train; no parameter is trainable in this stage")
    chosen = train.optimizer
    parts: list[torch.optim.Optimizer] = []
    adam = dict(names)
    if isinstance(chosen, schema.Muon):
        matrices = {name: p for name, p in names.items() if roles[name] == MATRIX and p.ndim == 2}
        adam = {name: p for name, p in names.items() if name not in matrices}
        if matrices:
            parts.append(
                Muon(
                    matrices.values(),
                    lr=chosen.learning_rate,
                    momentum=chosen.momentum,
                    weight_decay=train.weight_decay,
                )
            )
    assert isinstance(chosen, schema.AdamW | schema.Muon)
    groups = [
        {
            "params": [p for name, p in adam.items() if roles[name] in members],
            "weight_decay": train.weight_decay if members == DECAYED else 0.0,
        }
        for members in (DECAYED, (VECTOR, DYNAMICS))
    ]
    groups = [group for group in groups if group["params"]]
    if groups:
        betas = (chosen.beta1, chosen.beta2)
        parts.append(torch.optim.AdamW(groups, lr=train.learning_rate, betas=betas, eps=chosen.epsilon))
    return Optimizers(parts, names)


def rate_factor(train: Train, accepted: int) -> float:
    """Share of the peak rate at the update after ``accepted`` updates: linear warm-up, then a cosine that reaches
    ``final_rate`` at the last step of the schedule and stays there."""
    if accepted < train.warmup_steps:
        return (accepted + 1) / train.warmup_steps
    span = max(1, (train.schedule_steps or train.steps) - 1 - train.warmup_steps)
    progress = min(1.0, (accepted - train.warmup_steps) / span)
    return train.final_rate + (1 - train.final_rate) * 0.5 * (1 + math.cos(math.pi * progress))


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
    norms = torch._foreach_norm(real, 2)
    return {"state_nonfinite": (~torch.isfinite(torch.stack([norm.double() for norm in norms]))).sum()}


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], norm: float, limit: float) -> None:
    """Scale all gradients so that the global norm, already read as ``norm``, is at most ``limit``; direction kept."""
    if norm > limit:
        gradients = [own_part(p.grad) for p in parameters if p.grad is not None]
        torch._foreach_mul_(gradients, limit / norm)
