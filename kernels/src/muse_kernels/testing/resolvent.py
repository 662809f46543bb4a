"""Random resolvent problems and the comparison that every test of them makes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

DOUBLE = {torch.complex64: torch.complex128, torch.float32: torch.float64}
NAMES = ("diagonal", "lower", "upper", "energy", "values", "theta", "applied")


@dataclass
class Problem:
    """Inputs of one call, all leaves that ask for gradients."""

    diagonal: Tensor
    lower: Tensor
    upper: Tensor
    energy: Tensor
    values: Tensor
    theta: Tensor
    applied: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [getattr(self, name) for name in NAMES]

    def in_double(self) -> "Problem":
        """The same rounded inputs in float64, as fresh leaves."""
        return Problem(*(x.detach().to(DOUBLE.get(x.dtype, x.dtype)).requires_grad_() for x in self.leaves))

    def full(self, function: Callable, **options):
        """G of a resolvent_diagonal."""
        return function(self.diagonal, self.lower, self.upper, self.energy, **options)

    def left(self, function: Callable, **options):
        """(theta, final) of a causal_resolvent_diagonal from the carried state."""
        return function(self.diagonal, self.lower, self.upper, self.energy, initial=self.theta, **options)

    def apply(self, function: Callable, **options):
        """((y, theta), final) of a causal_resolvent_apply from the carried state."""
        state = (self.theta, self.applied)
        return function(self.diagonal, self.lower, self.upper, self.energy, self.values, initial=state, **options)


def draw(
    sites: int,
    kind: str = "complex",
    *,
    batch: int = 2,
    heads: int = 2,
    width: int = 3,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """A problem with Im z = 0.7. Kinds: complex, real, constant (couplings one a head), strided (N is not last).

    Couplings are zero at one site in the middle, where a document starts.
    """
    random = torch.Generator().manual_seed(seed)
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128

    def normal(*shape: int, real: bool = False) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=dtype if real else complex_dtype)

    real = kind == "real"
    diagonal = normal(batch, sites, heads, real=real).transpose(1, 2)
    if kind != "strided":
        diagonal = diagonal.contiguous()
    if kind == "constant":
        lower, upper = normal(heads, 1), normal(1, 1, real=True)
    else:
        lower, upper = normal(batch, heads, sites, real=real), normal(heads, sites, real=real)
        if sites > 2:
            lower[..., sites // 2] = 0
            upper[..., sites // 2] = 0
    energy = normal(heads, 1, real=True) + 0.7j
    values = normal(batch, heads, sites, width, real=kind == "constant")
    theta, applied = normal(batch, heads), normal(batch, heads, width)
    return Problem(
        *(x.detach().requires_grad_() for x in (diagonal, lower, upper, energy, values, theta, applied))
    )


def results(problem: Problem, call: Callable[[Problem], object]) -> list[Tensor | None]:
    """Outputs and the gradients to every leaf under random cotangents that depend on the shapes only."""
    outputs = tree_leaves(call(problem))
    random = torch.Generator().manual_seed(1)
    loss = 0.0
    for x in outputs:
        weight = torch.randn(tuple(x.shape), generator=random, dtype=torch.complex128)
        weight = weight.to(x.device, x.dtype) if x.is_complex() else weight.real.to(x)
        loss = loss + (weight * x).sum().real
    return [*outputs, *torch.autograd.grad(loss, problem.leaves, allow_unused=True)]


def assert_close(
    actual: list[Tensor | None], expected: list[Tensor | None], tolerance: float, *, zeros: bool = False
) -> None:
    """Each result within `tolerance` of the largest magnitude of the expected one; both absent or both there.

    A result that is zero throughout tests nothing and is an error, unless `zeros` says that it belongs to the problem,
    as the couplings' gradients do at a single site; then absent and zero are the same.
    """
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if zeros and (e is None or not e.any()):
            assert a is None or not a.any(), f"result {i} is not zero"
            continue
        assert (a is None) == (e is None), f"result {i}"
        if e is None or not e.numel():
            continue
        assert a.shape == e.shape and a.is_complex() == e.is_complex(), f"result {i}"
        error, scale = (a.to(e) - e).abs().max(), e.abs().max()
        assert scale > 0, f"result {i} is zero: nothing is tested"
        assert error <= tolerance * scale, f"result {i}: error {error:.2e} at scale {scale:.2e}"
