"""Spectral measures of tridiagonal Hamiltonians and their distance."""

from __future__ import annotations

import pytest
import torch
from muse_koopman.measure import drift, energies, spectral_measure, wasserstein

GRID = energies(torch.zeros((), dtype=torch.float64), 161)


def hamiltonian(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """V, Γ (2, 12, 3) and |l| (3,)."""
    generator = torch.Generator().manual_seed(seed)
    potential = torch.randn(2, 12, 3, generator=generator, dtype=torch.float64)
    decay = 0.1 * torch.rand(2, 12, 3, generator=generator, dtype=torch.float64)
    return potential, decay, torch.tensor([1.0, 0.5, 1.3], dtype=torch.float64)


def test_the_measure_is_that_of_the_dense_inverse() -> None:
    potential, decay, hopping = hamiltonian()
    found = spectral_measure(potential, decay, hopping, GRID, broadening=0.2)
    for head in range(3):
        density = torch.zeros_like(GRID)
        for row in range(2):
            off = hopping[head] * torch.ones(11, dtype=torch.float64)
            h = torch.diag(torch.complex(potential[row, :, head], -decay[row, :, head]))
            h = h + torch.diag(off, 1) + torch.diag(off, -1)
            for index, value in enumerate(GRID):
                z = complex(value, 0.2)
                green = torch.linalg.inv(h - z * torch.eye(12, dtype=torch.float64))
                density[index] += green.diagonal().imag.mean() / torch.pi
        torch.testing.assert_close(found[head], density / density.sum(), rtol=0, atol=1e-10)
    assert (found > 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(3, dtype=torch.float64))


def test_the_distance_of_points_is_how_far_they_are_apart() -> None:
    at = torch.eye(161, dtype=torch.float64)
    for first, second in ((0, 160), (40, 50), (7, 7)):
        due = GRID[second] - GRID[first]
        torch.testing.assert_close(wasserstein(at[first], at[second], GRID), due, rtol=0, atol=1e-12)


def test_shifted_spectra_are_as_far_apart_as_the_shift() -> None:
    """An atomic limit: no hopping and one level, so that the measure is one Lorentzian; its tails leave the grid."""
    hopping = torch.zeros(1, dtype=torch.float64)
    level = torch.zeros(1, 4, 1, dtype=torch.float64)
    first = spectral_measure(level, level, hopping, GRID, broadening=0.05)
    distances = []
    for shift in (0.1, 0.2, 0.4, 0.8):
        moved = spectral_measure(level + shift, level, hopping, GRID, broadening=0.05)
        distances.append(float(wasserstein(first, moved, GRID)))
        assert distances[-1] == pytest.approx(shift, rel=0.1)
    assert distances == sorted(distances)


def test_a_model_is_at_no_distance_from_itself_and_at_some_from_another() -> None:
    grid = energies(GRID)
    one = {"a": spectral_measure(*hamiltonian(0), grid)}
    other = {"a": spectral_measure(*hamiltonian(1), grid)}
    assert float(drift(one, one)) == 0.0 and float(drift(one, other)) > 0.01
    assert drift({}, {}) is None


def test_the_distance_has_the_gradient_of_its_differences() -> None:
    _, decay, hopping = hamiltonian()
    grid = energies(GRID)
    due = spectral_measure(hamiltonian(1)[0], decay, hopping, grid)

    def distance(potential: torch.Tensor) -> torch.Tensor:
        return wasserstein(spectral_measure(potential, decay, hopping, grid), due, grid).sum()

    potential = hamiltonian()[0].requires_grad_()
    assert torch.autograd.gradcheck(distance, (potential,), eps=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(distance(potential), potential)
    assert gradient.abs().min() > 0
