"""The stored zeros and the bases made from them."""

import mpmath
import pytest
import torch
from muse_resonance.basis import fourier_basis, orthonormalised, plane_waves, random_basis, zeta_basis, zeta_zeros

STORED = 1024


@pytest.mark.parametrize("n", [1, 2, 40, 333, STORED])
def test_stored_zeros_are_mpmaths(n):
    with mpmath.workdps(25):
        assert zeta_zeros(STORED)[n - 1].item() == float(mpmath.nstr(mpmath.zetazero(n).imag, 17))


def test_more_than_are_stored_is_a_sentence():
    with pytest.raises(ValueError, match="a key width of 1025 needs as many zeta zeros, 1024 are stored"):
        zeta_zeros(STORED + 1)


@pytest.mark.parametrize("size", [1, 2, 7, 48, 64, 128])
def test_every_basis_is_orthonormal(size):
    identity = torch.eye(size, dtype=torch.complex128)
    for basis in (zeta_basis(size), fourier_basis(size), random_basis(size, torch.Generator().manual_seed(0))):
        torch.testing.assert_close(basis.mH @ basis, identity, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [7, 48])
def test_the_zeta_basis_spans_the_plane_waves_in_their_order(size):
    """Column j lies in the span of the first j + 1 waves, with a positive share of the last, whatever LAPACK does."""
    shares = zeta_basis(size).mH @ plane_waves(zeta_zeros(size))
    torch.testing.assert_close(shares.tril(-1), torch.zeros_like(shares), rtol=0, atol=1e-12)
    assert (shares.diagonal().real > 0).all() and shares.diagonal().imag.abs().max() < 1e-12


def test_raw_plane_waves_are_all_but_dependent():
    assert torch.linalg.cond(plane_waves(zeta_zeros(64))) > 1e6
    assert torch.linalg.cond(plane_waves(torch.arange(64, dtype=torch.float64))) < 1 + 1e-9


def test_the_phase_of_a_column_is_fixed():
    columns = plane_waves(zeta_zeros(8))
    turned = columns.clone()
    turned[:, 3] *= 1j
    expected = zeta_basis(8).clone()
    expected[:, 3] *= 1j
    torch.testing.assert_close(orthonormalised(turned), expected)


def test_a_basis_is_computed_once():
    assert zeta_basis(16) is zeta_basis(16)
