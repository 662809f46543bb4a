"""The stored zeros."""

import math

import mpmath
import pytest
import torch
from muse_zeta_init.compute_zeros import zero
from muse_zeta_init.zeros import random_zeros, zeta_zeros

STORED = 1536


@pytest.mark.parametrize("n", [1, 2, 7, 96, 127, 511, 1024, STORED])
def test_stored_zeros_are_mpmaths(n):
    assert zeta_zeros(STORED)[n - 1].item() == float(zero(n))


@pytest.mark.parametrize("n", [3, 1000])
def test_zeta_vanishes_there(n):
    assert abs(mpmath.zeta(mpmath.mpc(0.5, zeta_zeros(n)[-1].item()))) < 1e-11


def test_none_is_missing():
    """The n-th zero lies within one unit of where the smooth count of zeros is n − 1/2."""
    heights = zeta_zeros(STORED)
    smooth = heights / (2 * math.pi) * (heights / (2 * math.pi * math.e)).log() + 7 / 8
    assert (smooth - torch.arange(1, STORED + 1) + 0.5).abs().max() < 1.0
    assert heights.diff().min() > 0


def spacings(points):
    """Nearest-neighbour distances in units of the mean, by the smooth count of zeros."""
    unfolded = points / (2 * math.pi) * (points / (2 * math.pi * math.e)).log()
    return unfolded.diff() / unfolded.diff().mean()


def test_random_points_are_as_dense_but_do_not_repel():
    """Independent points have spacings of deviation 1; zeros repel each other: 0.37 among the lowest 512."""
    generator = torch.Generator().manual_seed(0)
    points = torch.stack([random_zeros(512, generator) for _ in range(20)])
    zeros = zeta_zeros(512)
    assert 0.34 < spacings(zeros).std() < 0.40
    assert 0.95 < torch.stack([spacings(row) for row in points]).std() < 1.05
    assert points.min() >= zeros[0] and points.max() <= zeros[-1]
    assert (points.median() / zeros.median() - 1).abs() < 0.05


def test_more_than_are_stored_is_an_error():
    with pytest.raises(ValueError, match="1537 zeta zeros are needed, 1536 are stored"):
        zeta_zeros(STORED + 1)
