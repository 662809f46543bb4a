"""Momentum whose updates are orthogonalised by Newton-Schulz steps, for matrices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.model.precision import computes_bf16

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
                update = newton_schulz(gradient.lerp(mean, momentum))
                rows, columns = parameter.shape
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update, alpha=-rate * math.sqrt(max(1.0, rows / columns)))
