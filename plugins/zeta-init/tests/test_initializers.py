"""Singular values, norms and singular vectors of what the initializers make."""

import pytest
import torch
from muse_zeta_init.zeros import zeta_zeros

from muse_core.errors import RecipeError
from muse_core.testing import build_component

NAMES = ["zeta", "orthogonal", "random-spectrum"]
SHAPES = [(24, 40), (300, 16), (12, 4, 6)]


def fill(name, tensor, seed=0, role="matrix"):
    return build_component("initializer", name)(tensor, role=role, generator=torch.Generator().manual_seed(seed))


def singular_values(tensor):
    return torch.linalg.svdvals(tensor.flatten(1).double())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_shape_and_norm(name, shape):
    replaced = 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    filled = fill(name, replaced)
    assert filled.shape == shape
    torch.testing.assert_close(filled.norm(), replaced.norm(), rtol=1e-5, atol=0)
    assert not torch.equal(fill(name, replaced, seed=1), filled)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_are_inverse_zeros(shape):
    values = singular_values(fill("zeta", torch.ones(shape)))
    torch.testing.assert_close(values / values[0], zeta_zeros(1) / zeta_zeros(len(values)), rtol=1e-5, atol=0)


def test_orthogonal_has_equal_singular_values():
    values = singular_values(fill("orthogonal", torch.ones(16, 40)))
    torch.testing.assert_close(values, values[:1].expand(16), rtol=1e-5, atol=0)


def test_random_spectrum_spans_what_the_zeros_span_but_is_another():
    values = singular_values(fill("random-spectrum", torch.ones(64, 64)))
    zeros = zeta_zeros(64)
    assert 1 <= values[0] / values[-1] <= zeros[-1] / zeros[0] * (1 + 1e-5)
    assert ((values / values[0] - zeros[0] / zeros).abs() > 0.01).any()


def test_singular_vectors_have_no_preferred_direction():
    """The sign and the size of the first left vector's first entry average to 0 and 1/rows."""
    first = torch.stack([torch.linalg.svd(fill("zeta", torch.ones(8, 8), seed=seed))[0][:, 0] for seed in range(400)])
    first = first * torch.sign(torch.randn(400, 1, generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(first.square().mean(0), torch.full((8,), 1 / 8), rtol=0, atol=0.03)


def test_entries_average_to_zero():
    """QR alone would give diagonals of one sign."""
    entries = torch.stack([fill("orthogonal", torch.ones(4, 4), seed=seed).diagonal() for seed in range(400)])
    assert entries.mean(0).abs().max() < 0.15


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros(name):
    assert fill(name, torch.zeros(8, 8)).count_nonzero() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_is_refused(name):
    with pytest.raises(RecipeError, match=r"a vector parameter of shape \(8,\) has no singular values"):
        fill(name, torch.ones(8), role="vector")
