"""Diversity, rank and verdicts against what they must be."""

from __future__ import annotations

import math

import pytest
import torch
from muse_cvfp.diversity import RIDGE, covariance, log_det, mean_deviation, vicreg
from muse_cvfp.fixed_point import Convergence
from muse_cvfp.metrics import effective_rank, gaussian_ceiling, of_total, rate, reduction, slope, verdict


def spread(tokens: int = 400, width: int = 8) -> torch.Tensor:
    """Contexts whose covariance is the identity exactly."""
    draws = torch.randn(tokens, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    draws -= draws.mean(0)
    return torch.linalg.qr(draws).Q * math.sqrt(tokens)


def line(tokens: int = 400, width: int = 8) -> torch.Tensor:
    """Contexts ±1 on one line, of the same size as those spread out."""
    signs = torch.where(torch.arange(tokens) % 2 == 0, 1.0, -1.0).double()
    return signs[:, None].expand(-1, width)


def test_log_det_is_its_formula_and_least_at_the_identity() -> None:
    cloud = spread() @ torch.diag(torch.linspace(0.5, 1.3, 8, dtype=torch.float64))
    expected = -torch.logdet(covariance(cloud) + RIDGE * torch.eye(8, dtype=torch.float64)) / 8
    assert abs(log_det(cloud) - expected) < 1e-10
    assert abs(log_det(spread()) + math.log(1 + RIDGE)) < 1e-10
    assert log_det(spread()) < log_det(cloud) < log_det(line())


def test_vicreg_is_nothing_at_the_identity() -> None:
    assert vicreg(spread()) < 1e-3
    assert abs(vicreg(line()) - 7.0) < 1e-10, "56 covariances of 1 over 8"


def test_the_mean_deviation_takes_a_line_for_variety() -> None:
    """Why it is no default: a rank of 1 scores what full rank scores, its bound."""
    bound = -math.sqrt(8 / 400)
    assert abs(mean_deviation(spread()) - bound) < 1e-10
    assert abs(mean_deviation(line()) - bound) < 1e-10
    assert effective_rank(line()) == pytest.approx(1.0) and effective_rank(spread()) == pytest.approx(8.0)


def test_effective_rank_of_known_spectra() -> None:
    cloud = spread() @ torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64))
    assert effective_rank(cloud) == pytest.approx(4.0)
    assert effective_rank(cloud + 5.0) == pytest.approx(4.0), "the mean does not count"
    assert gaussian_ceiling(20, 64) < 19.5 < 60 < gaussian_ceiling(6400, 64)


def test_rates_always_have_counts() -> None:
    assert rate(torch.zeros(6400, dtype=torch.bool)) == "0.0 % (0/6400)"
    assert rate(torch.tensor([True, False, True, True])) == "75.0 % (3/4)"
    assert of_total(429.0, 768) == "429.0/768 (55.9 %)"


@pytest.mark.parametrize("losses, expected", [
    ([1.0, 0.1, 0.01, 0.0005], "CONVERGED"),
    ([1.0, 0.9, 0.8, 0.7], "CONVERGING"),
    ([1.0, 1.2, 1.4, 1.6], "DIVERGING"),
    ([1.0, 0.5, 1.4, 0.95], "UNSTABLE"),
    ([1.0, 2.0, math.inf, 0.0], "UNSTABLE"),
])
def test_verdicts(losses: list[float], expected: str) -> None:
    assert verdict(losses) == expected


def test_slope_and_reduction() -> None:
    assert slope([1.0, 0.1, 0.01]) == pytest.approx(-1.0)
    assert reduction([2.0, 9.0, 0.5]) == pytest.approx(75.0)


def test_convergence_leaves_iteration_one_out_and_needs_patience() -> None:
    counts = Convergence(share=0.95, patience=2)
    counts.see(1, 1.0, 1.0)
    assert counts.streak == 0
    counts.see(2, 0.96, 0.97)
    assert counts.streak == 1 and not counts.reached
    counts.see(3, 0.99, 0.90)
    assert counts.streak == 0, "both the difference and the residual must reach it"
    counts.see(4, 0.95, 0.95)
    counts.see(5, 0.95, 0.95)
    assert counts.reached
