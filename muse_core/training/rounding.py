"""What rounding does to gradients, measured.

Weights are moved within their rounding, so that every sum of a pass rounds otherwise (as in discrete stochastic
arithmetic: J. Vignes, Numerical Algorithms 37, 2004).
"""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from muse_core.model.precision import Precision
from muse_core.training.train_state import kept

NEAR = 1e-2
"""Of a gradient's norm, how far another form of the same pass may be from it whatever rounding does."""
FACTOR = 3.0
"""Times what rounding does to the gradient: the other form rounds too, in other places. Right compiled ones (phase5 and
mamba2, bfloat16) were up to 0.9 of it apart, and biases of a few numbers up to 1.4 of a single measurement."""
MOVES = 5
"""Times that weights are moved at most; the largest effect counts, or that on the median parameter: of a few numbers
one measurement may be small by chance."""


def rounding_of(precision: Precision) -> float:
    """The spacing of numbers at 1 in the precision in which products are computed."""
    return torch.finfo(torch.bfloat16 if precision.autocast else torch.float32).eps


@contextlib.contextmanager
def moved(weights: Mapping[str, Tensor], rounding: float, noise: torch.Generator) -> Iterator[None]:
    """Inside, every weight is moved by up to half of ``rounding`` times itself; afterwards all are as they were.

    One that is held in no finer numbers goes by a whole one or not at all: in float32 a quarter of them, towards zero.
    """
    before = {name: kept(own) for name, own in weights.items()}
    try:
        with torch.no_grad():
            for own in weights.values():
                real = torch.empty(0, dtype=own.dtype).real.dtype
                move = torch.rand(own.shape, dtype=real, device=own.device, generator=noise)
                own.mul_(move.mul_(rounding).add_(1 - rounding / 2))
        yield
    finally:
        with torch.no_grad():
            for name, own in weights.items():
                own.copy_(before[name])


def widened(allowed: Mapping[str, float], effects: Mapping[str, float], sizes: Mapping[str, float]) -> dict[str, float]:
    """``allowed`` by parameter, and at least ``FACTOR`` times what one move did; a move to no number allows nothing.
    ``sizes``: norms of finite gradients."""
    known = {name: effect if math.isfinite(effect) else 0.0 for name, effect in effects.items()}
    shares = [known[name] / size for name, size in sizes.items() if size and math.isfinite(effects[name])]
    typical = statistics.median(shares) if shares else 0.0
    return {
        name: max(limit, FACTOR * known[name], FACTOR * typical * sizes.get(name, 0.0))
        for name, limit in allowed.items()
    }


def beyond(distances: Mapping[str, float], allowed: Mapping[str, float]) -> list[str]:
    """Parameters whose distance is more than is allowed, or no number."""
    return [name for name, distance in distances.items() if allowed[name] < math.inf and not distance <= allowed[name]]


def square(value: Tensor) -> Tensor:
    """Sum of squares, float64, without an axis."""
    value = torch.view_as_real(value) if value.is_complex() else value
    return torch.linalg.vector_norm(value, dtype=torch.float64).square()


def apart(expected: Tensor, found: Tensor) -> tuple[float, float]:
    """Norms of the difference and of what is expected, whose squares may be beyond float32. Waits for the device."""
    if not expected.is_floating_point() and not expected.is_complex():
        expected, found = expected.double(), found.double()
    return square(found - expected).sqrt().item(), square(expected).sqrt().item()
