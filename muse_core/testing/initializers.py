"""The conformance suite of initializers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_core.model.roles import EMBEDDING, MATRIX
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite

SHAPES = [(24, 8), (8, 24), (16, 16), (1, 16), (96, 32)]


class InitializerSuite(Suite):
    """Fills full fp32 tensors on the CPU by role and generator; see ``contracts.Initializer``."""

    kind = "initializer"

    def filled(self, case: Case, shape: tuple[int, ...], *, role: str = MATRIX, seed: int = 0) -> Tensor:
        replaced = torch.randn(shape, generator=torch.Generator().manual_seed(99)) * shape[-1] ** -0.5
        value: Tensor = self.build(case)(replaced, role=role, generator=torch.Generator().manual_seed(seed))
        return value

    @pytest.mark.parametrize("role", [MATRIX, EMBEDDING])
    @pytest.mark.parametrize("shape", SHAPES, ids=["tall", "wide", "square", "row", "large"])
    def test_returns_the_same_shape_finite_and_alive(self, case: Case, shape: tuple[int, ...], role: str) -> None:
        value = self.filled(case, shape, role=role)
        assert value.shape == shape, f"gave {tuple(value.shape)} for a parameter of {shape}"
        assert value.dtype == torch.float32, f"gave {value.dtype} for a parameter in float32"
        assert torch.isfinite(value).all(), "values are not finite"
        assert value.norm() > 1e-3, "values near zero make a dead branch"

    def test_depends_on_the_generator_alone(self, case: Case) -> None:
        before = torch.random.get_rng_state()
        first = self.filled(case, (24, 8), seed=1)
        assert torch.equal(torch.random.get_rng_state(), before), "moved torch's global generator"
        torch.rand(3)
        assert torch.equal(self.filled(case, (24, 8), seed=1), first), "differs between two calls with one seed"

    def test_leaves_the_given_tensor_alone(self, case: Case) -> None:
        given = torch.ones(24, 8)
        self.build(case)(given, role=MATRIX, generator=torch.Generator().manual_seed(0))
        assert torch.equal(given, torch.ones(24, 8)), "changed the tensor in place; return a new one"
