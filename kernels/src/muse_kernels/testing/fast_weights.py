"""Random fast-weight problems and the comparison that every test of them makes."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Problem:
    """Inputs of one call, all leaves that ask for gradients; keys are unit vectors, rates lie in (0, 2)."""

    query: Tensor
    key: Tensor
    value: Tensor
    log_decay: Tensor
    rate: Tensor
    initial: Tensor
    resets: Tensor | None

    @property
    def leaves(self) -> list[Tensor]:
        return [self.query, self.key, self.value, self.log_decay, self.rate, self.initial]

    def run(self, operation, **options) -> tuple[Tensor, Tensor]:
        """(output, final) of some fast_weights from the carried state."""
        return operation(
            self.query,
            self.key,
            self.value,
            self.log_decay,
            self.rate,
            initial=self.initial,
            resets=self.resets,
            **options,
        )

    def to(self, dtype: torch.dtype, device: str | None = None) -> "Problem":
        """The same rounded inputs in another dtype, as fresh leaves."""
        leaves = [x.detach().to(device=device, dtype=dtype).requires_grad_() for x in self.leaves]
        resets = None if self.resets is None else self.resets.to(device=device)
        return Problem(*leaves, resets)


def draw(
    tokens: int,
    *,
    batch: int = 2,
    heads: int = 2,
    key_width: int = 5,
    value_width: int = 3,
    resets: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """A problem whose decay, rate and resets vary by token."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=random, dtype=torch.float64)

    tensors = [
        normal(batch, tokens, heads, key_width),
        torch.nn.functional.normalize(normal(batch, tokens, heads, key_width), dim=-1),
        normal(batch, tokens, heads, value_width),
        -uniform(batch, tokens, heads) * 0.3,
        uniform(batch, tokens, heads) * 2,
        normal(batch, heads, key_width, value_width),
    ]
    starts = uniform(batch, tokens) < 0.1 if resets else None
    return Problem(*(x.to(dtype).requires_grad_() for x in tensors), starts)


def results(problem: Problem, operation, **options) -> list[Tensor]:
    """Output, final state and the gradients to every leaf under random cotangents that depend on the shape only."""
    output, final = problem.run(operation, **options)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(tuple(x.shape), generator=random, dtype=torch.float64) for x in (output, final)]
    loss = sum((w.to(x) * x).sum() for w, x in zip(weights, (output, final), strict=True))
    return [output, final, *torch.autograd.grad(loss, problem.leaves)]


NAMES = ("output", "final", "query", "key", "value", "log_decay", "rate", "initial")


def assert_close(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each result within `tolerance` of the largest magnitude of the expected one."""
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert a.shape == e.shape, name
        error = (a.to(e) - e).abs().max() if e.numel() else 0.0
        scale = e.abs().max() if e.numel() else 1.0
        assert error <= tolerance * max(scale, 1e-3), f"{name}: error {error:.2e} at scale {scale:.2e}"
