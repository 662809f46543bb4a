"""The core's optimizers: AdamW, and Muon for hidden matrices beside AdamW for the rest."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import TrainedParameter
from muse_core.model.precision import computes_bf16
from muse_core.model.roles import MATRIX
from muse_core.training.options import AdamWOptions, MuonOptions
from muse_core.training.rule_context import Calls, OptimizerContext
from muse_core.training.shards import divided_as, is_divided, whole

COEFFICIENTS = (3.4445, -4.775, 2.0315)
"""Of the quintic a x + b x³ + c x⁵; five steps bring singular values into [0.68, 1.13]. Source: mathematics §3."""
STEPS = 5
SMALLEST = 1e-7


def newton_schulz(
    matrix: Tensor, *, coefficients: tuple[float, float, float] = COEFFICIENTS, steps: int = STEPS,
    smallest: float = SMALLEST,
) -> Tensor:
    """(…, rows, columns), of two or three axes → the same shape with singular values near 1 and the same singular
    vectors.

    In bf16 where the processor has such instructions, else in the matrix's own precision: emulated bf16 takes five
    times as long as fp32 on a CPU, and this is most of an update.
    """
    x = matrix.bfloat16() if computes_bf16(matrix.device) else matrix
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    single = x.ndim == 2
    size = x.norm() if single else torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x = x / size.clamp_min(smallest)
    # Of matrices alike by the operation itself: `@` first expands and views each of them.
    times, product = (torch.mm, torch.addmm) if single else (torch.bmm, torch.baddbmm)
    a, b, c = coefficients
    for _ in range(steps):
        gram = times(x, x.mT)
        x = product(x, product(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    # Contiguous, for a tall one, so that many of them are added in one pass.
    return (x.mT if tall else x).to(matrix.dtype, memory_format=torch.contiguous_format)


TOGETHER = 4
"""Matrices of one shape that a CPU orthogonalises by one call: 28 of 192 x 192 took 0.61 times as long as one by one,
all 28 at once 0.68 times, since they leave the cache."""
NUMBERS = 2**24
"""Of matrices of one shape that a GPU orthogonalises by one call: 32 MB a copy. One by one, the matrices of a small
model are some thousand launches that the host cannot give as quickly as the device is done with them."""


def bundles(parameters: Iterable[Tensor], together: Callable[[Tensor], int]) -> Iterator[list[Tensor]]:
    """The parameters that have gradients, up to ``together(matrix)`` of one shape at a time; no more than one divided
    matrix is to be whole."""
    alike: dict[tuple[torch.device, tuple[int, ...]], list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        if is_divided(parameter.grad):
            yield [parameter]
        else:
            alike.setdefault((parameter.device, tuple(parameter.shape)), []).append(parameter)
    for some in alike.values():
        most = together(some[0])
        yield from (some[first : first + most] for first in range(0, len(some), most))


def as_many_as_fit(matrix: Tensor) -> int:
    """How many matrices of this shape have ``NUMBERS`` numbers."""
    return max(1, NUMBERS // max(1, matrix.numel()))


def by_torch(matrix: Tensor) -> int:
    """How many matrices of this shape torch orthogonalises by one call. In fp32 a CPU's product of a batch takes longer
    than products one by one."""
    if matrix.device.type == "cpu":
        return TOGETHER if computes_bf16(matrix.device) else 1
    return as_many_as_fit(matrix)


def orthogonalization(kernels: Any) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], int]]:
    """How matrices are orthogonalised, and how many of a shape by one call. On a CPU that computes in fp32 a kernel
    backend may have ``newton_schulz``, which then takes half the time; bf16 products take less still."""
    if kernels is None or kernels.device != "cpu" or computes_bf16(torch.device("cpu")):
        return newton_schulz, by_torch
    bound = kernels.bind("newton_schulz", needs=(), otherwise=f"{__name__}:newton_schulz")
    if kernels.selections["newton_schulz"].backend == "core":
        return newton_schulz, by_torch
    return functools.partial(bound, coefficients=COEFFICIENTS, steps=STEPS, smallest=SMALLEST), as_many_as_fit


class Muon(torch.optim.Optimizer):
    """W ← (1 − lr·decay) W − lr·√max(1, rows/columns)·NS(g + momentum·(m − g)) with m ← m + (1 − momentum)(g − m).

    Parameters are real matrices. State: ``momentum_buffer``, m. Source: Jordan et al., "Muon: an optimizer for hidden
    layers in neural networks", 2024.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, lr: float, momentum: float, weight_decay: float,
        orthogonalize: Callable[[Tensor], Tensor] = newton_schulz, together: Callable[[Tensor], int] = by_torch,
    ):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.orthogonalize, self.together = orthogonalize, together

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update from the gradients as they are; ``closure`` is not used."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for some in bundles(group["params"], self.together):
                if is_divided(some[0].grad):
                    self._step_divided(some[0], group)
                    continue
                updates = self._updates(some, momentum)
                torch._foreach_mul_(some, 1 - rate * group["weight_decay"])
                torch._foreach_add_(some, updates, alpha=self._length(some[0], rate))

    @torch.no_grad()
    def step_recorded(self, calls: Calls) -> None:
        """``step`` of matrices of which none is divided. What the rate has no part in is launched as one; rates change
        with every step, and a recording would keep the number that it had."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            split = list(bundles(group["params"], self.together))
            matrices = [p for some in split for p in some]
            if not matrices:
                continue
            moved = functools.partial(self._all_updates, split, momentum)
            updates = calls(moved, [p.grad for p in matrices], [self._mean(p) for p in matrices])
            torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
            for some, of_some in zip(split, updates, strict=True):
                torch._foreach_add_(some, of_some, alpha=self._length(some[0], rate))

    def _all_updates(self, split: Sequence[Sequence[Tensor]], momentum: float) -> list[Sequence[Tensor]]:
        return [self._updates(some, momentum) for some in split]

    def _updates(self, some: Sequence[Tensor], momentum: float) -> Sequence[Tensor]:
        """Orthogonalised, of matrices of one shape, with their momentum moved on."""
        gradients, means = [p.grad for p in some], [self._mean(p) for p in some]
        torch._foreach_lerp_(means, gradients, 1 - momentum)
        wanted = torch._foreach_lerp(gradients, means, momentum)
        if len(some) == 1:
            return [self.orthogonalize(wanted[0])]
        return self.orthogonalize(torch.stack(wanted)).unbind()

    def _length(self, matrix: Tensor, rate: float) -> float:
        """By which an orthogonalised update is added."""
        rows, columns = matrix.shape
        return -rate * math.sqrt(max(1.0, rows / columns))

    def _step_divided(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Singular vectors are those of the whole matrix: one that is divided is gathered, its update divided again."""
        mean = self._mean(parameter).lerp_(parameter.grad, 1 - group["momentum"])
        update = self.orthogonalize(whole(parameter.grad.lerp(mean, group["momentum"])))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(divided_as(update, parameter.grad), alpha=self._length(parameter, group["lr"]))

    def _mean(self, parameter: Tensor) -> Tensor:
        """Its momentum m; zero before the first update."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter.grad)
        mean: Tensor = state["momentum_buffer"]
        return mean


class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW by its fused update, of real parameters of one type and device."""

    @torch.no_grad()
    def step_recorded(self, calls: Calls) -> None:
        """``step`` by the fused update itself: torch sorts tensors by type and device before it, which takes longer
        than the update of a small model."""
        for group in self.param_groups:
            some = [p for p in group["params"] if p.grad is not None]
            kept = [self.state[p] for p in some]
            if not all(kept):  # made by the first step
                self.step()
                return
        for group in self.param_groups:
            some = [p for p in group["params"] if p.grad is not None]
            if not some:
                continue
            kept, (beta1, beta2) = [self.state[p] for p in some], group["betas"]
            updates = [state["step"] for state in kept]
            torch._foreach_add_(updates, 1)
            torch._fused_adamw_(
                some, [p.grad for p in some], [state["exp_avg"] for state in kept],
                [state["exp_avg_sq"] for state in kept], [], updates, lr=group["lr"], beta1=beta1, beta2=beta2,
                weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
            )


class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019) by ``torch.optim.AdamW``: matrices and embeddings
    decay, vectors and dynamics do not."""

    def __init__(self, options: AdamWOptions, context: OptimizerContext):
        self.options, self.context = options, context

    def build(self, parameters: Mapping[str, TrainedParameter]) -> list[torch.optim.Optimizer]:
        """One optimiser with a group for the decayed parameters and one for the others."""
        return adam_of(parameters, self.options, self.context)

    def kept(self, optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
        """The number of updates and both moments."""
        return moments_of_adam(optimizer, parameter)


class MuonWithAdamW:
    """Muon (Jordan et al. 2024) for hidden matrices, at a rate of its own, and AdamW for everything else. Both follow
    the schedule together."""

    def __init__(self, options: MuonOptions, context: OptimizerContext):
        self.options, self.context = options, context

    def build(self, parameters: Mapping[str, TrainedParameter]) -> list[torch.optim.Optimizer]:
        """Up to two optimisers; all matrices of two axes are Muon's."""
        matrices = {name for name, one in parameters.items() if one.role == MATRIX and one.tensor.ndim == 2}
        parts: list[torch.optim.Optimizer] = []
        if matrices:
            orthogonalize, together = orthogonalization(self.context.kernels)
            parts.append(Muon(
                [parameters[name].tensor for name in parameters if name in matrices],
                lr=self.options.learning_rate,
                momentum=self.options.momentum,
                weight_decay=self.context.weight_decay,
                orthogonalize=orthogonalize,
                together=together,
            ))
        rest = {name: one for name, one in parameters.items() if name not in matrices}
        return parts + adam_of(rest, self.options, self.context)

    def kept(self, optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
        """Muon's momentum, or what AdamW keeps."""
        return {"momentum_buffer": parameter} if isinstance(optimizer, Muon) else moments_of_adam(optimizer, parameter)


def adam_of(
    parameters: Mapping[str, TrainedParameter], options: AdamWOptions | MuonOptions, context: OptimizerContext
) -> list[torch.optim.Optimizer]:
    """AdamW over these parameters, decayed ones first; none where there are none."""
    groups: list[dict[str, Any]] = [
        {
            "params": [one.tensor for one in parameters.values() if context.decays(one.role) is decayed],
            "weight_decay": context.weight_decay if decayed else 0.0,
        }
        for decayed in (True, False)
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        return []
    rest: dict[str, Any] = {"lr": context.learning_rate, "betas": (options.beta1, options.beta2)}
    if not all(fused(one.tensor) for one in parameters.values()):
        return [torch.optim.AdamW(groups, eps=options.epsilon, **rest)]
    alike = len({(one.tensor.dtype, one.tensor.device) for one in parameters.values()}) == 1
    return [(FusedAdamW if alike else torch.optim.AdamW)(groups, eps=options.epsilon, fused=True, **rest)]


def fused(parameter: Tensor) -> bool:
    """Whether AdamW's update of a parameter is one of few kernels that read everything once: on a GPU."""
    return parameter.is_cuda and parameter.is_floating_point()


def moments_of_adam(optimizer: torch.optim.Optimizer, parameter: Tensor) -> dict[str, Tensor]:
    """What ``torch.optim.AdamW`` keeps for a parameter. The number of updates is where it is read: a fused update
    reads it on the device."""
    device = parameter.device if optimizer.defaults["fused"] else torch.device("cpu")
    return {
        "step": torch.zeros((), dtype=torch.float32, device=device), "exp_avg": parameter, "exp_avg_sq": parameter,
    }
