"""One fused check of the gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from muse_core.training.optimizers import clip, gradient_numbers, norms


def numbers_of(parameters: list[nn.Parameter]) -> dict[str, torch.Tensor]:
    return gradient_numbers(norms([p.grad for p in parameters if p.grad is not None]))


def parameters(*gradients: torch.Tensor) -> list[nn.Parameter]:
    made = []
    for gradient in gradients:
        parameter = nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient.clone()
        made.append(parameter)
    return made


def test_norm_is_that_of_float64() -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(50, 7), torch.randn(3), torch.randn(4, 4, dtype=torch.complex64)]
    real = [torch.view_as_real(g) if g.is_complex() else g for g in gradients]
    expected = math.sqrt(sum(g.double().square().sum().item() for g in real))
    numbers = numbers_of(parameters(*gradients))
    assert numbers["gradient_norm"].item() == pytest.approx(expected, rel=1e-12)
    assert numbers["gradient_nonfinite"].item() == 0


def test_large_finite_gradient_is_neither_damage_nor_lost_by_clipping() -> None:
    made = parameters(torch.tensor([1e25, -2e25]), torch.tensor([3.0]))
    numbers = numbers_of(made)
    assert numbers["gradient_nonfinite"].item() == 0
    norm = numbers["gradient_norm"].item()
    assert norm == pytest.approx(math.sqrt(5) * 1e25, rel=1e-6)
    clip(made, norm, 1.0)
    torch.testing.assert_close(made[0].grad, torch.tensor([1.0, -2.0]) / math.sqrt(5))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, complex(0.0, math.nan), complex(math.inf, 0.0)])
def test_one_bad_element_anywhere_is_counted(bad: complex) -> None:
    dtype = torch.complex64 if isinstance(bad, complex) else torch.float32
    gradient = torch.ones(5, 5, dtype=dtype)
    gradient[3, 2] = bad
    assert numbers_of(parameters(torch.ones(4), gradient))["gradient_nonfinite"].item() == 1


def test_norm_below_the_limit_leaves_gradients_alone() -> None:
    made = parameters(torch.tensor([0.3, 0.4]))
    clip(made, 0.5, 1.0)
    assert torch.equal(made[0].grad, torch.tensor([0.3, 0.4]))


def test_any_norm_above_the_limit_is_scaled_to_it_over_all_parameters_together() -> None:
    for size in (1.001, 1.5, 40.0):
        made = parameters(size * torch.tensor([0.6, 0.0]), size * torch.tensor([[0.8]]))
        clip(made, size, 1.0)
        assert numbers_of(made)["gradient_norm"].item() == pytest.approx(1.0, rel=1e-6)
        torch.testing.assert_close(made[0].grad, torch.tensor([0.6, 0.0]))


def test_no_gradients_and_empty_gradients_count_as_zero() -> None:
    assert numbers_of([nn.Parameter(torch.ones(2))])["gradient_norm"].item() == 0
    assert numbers_of(parameters(torch.zeros(0, 3)))["gradient_norm"].item() == 0


def test_norms_stand_by_parameter_whatever_the_precision() -> None:
    made = parameters(torch.tensor([1e300, 1e300], dtype=torch.float64), torch.zeros(3), torch.tensor([3.0, math.nan]))
    found = norms([p.grad for p in made])
    assert found.dtype == torch.float64
    assert found[0].item() == pytest.approx(math.sqrt(2) * 1e300, rel=1e-12)
    assert found[1].item() == 0.0 and math.isnan(found[2].item())
