"""Identities and bounds of the resolvent: splitting, documents, Im theta > 0 and |theta|, |G| <= 1/eta, precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muse_kernels import causal_resolvent_apply, causal_resolvent_diagonal, reference, resolvent_diagonal
from muse_kernels.testing.resolvent import draw


def physical(rows: int, sites: int, scale, eta, seed: int = 0, dtype=torch.float64):
    """V - i Gamma of this scale, u = conj(l) with |l| near one, Re z over the band, Im z = eta; one draw a row."""
    random = torch.Generator().manual_seed(seed)
    complex_dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    scale, eta = (torch.as_tensor(x, dtype=torch.float64).expand(rows)[:, None] for x in (scale, eta))
    a = scale * torch.randn(rows, sites, generator=random, dtype=torch.complex128)
    a = torch.complex(a.real, -a.imag.abs())
    l = torch.exp(0.3 * torch.randn(rows, sites, generator=random, dtype=torch.complex128))
    z = torch.complex(4 * torch.rand(rows, 1, generator=random, dtype=torch.float64) - 2, eta)
    return tuple(x.to(complex_dtype) for x in (a, l, l.conj(), z))


@pytest.mark.parametrize("split", (1, 7, 63, 64))
def test_any_split_gives_the_same(split):
    p = draw(65)
    (y, theta), final = p.apply(causal_resolvent_apply)
    halves, state = [], (p.theta, p.applied)
    for part in (slice(0, split), slice(split, None)):
        inputs = (p.diagonal[..., part], p.lower[..., part], p.upper[..., part], p.energy, p.values[..., part, :])
        out, state = causal_resolvent_apply(*inputs, initial=state)
        halves.append(out)
    torch.testing.assert_close(torch.cat([h[0] for h in halves], -2), y, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(torch.cat([h[1] for h in halves], -1), theta, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(state, final, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("backend", ("reference", "torch"))
def test_zero_couplings_start_a_document(backend):
    p = draw(24)
    start = 12  # where draw() puts a boundary
    (y, theta), _ = p.apply(causal_resolvent_apply, backend=backend)
    inputs = (p.diagonal[..., start:], p.lower[..., start:], p.upper[..., start:], p.energy, p.values[..., start:, :])
    (alone, theta_alone), _ = causal_resolvent_apply(*inputs, backend=backend)
    torch.testing.assert_close(y[..., start:, :], alone)
    torch.testing.assert_close(theta[..., start:], theta_alone)


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(1, 80),
    scale=st.floats(1e-3, 1e3),
    eta=st.floats(0.05, 5.0),
    seed=st.integers(0, 10_000),
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_bounds_of_the_physical_choice(sites, scale, eta, seed, dtype):
    inputs = physical(3, sites, scale, eta, seed, dtype)
    slack = 1 + (1e-3 if dtype == torch.float32 else 1e-9)
    theta, _ = causal_resolvent_diagonal(*inputs)
    green = resolvent_diagonal(*inputs)
    assert (theta.imag > 0).all() and (theta.abs() <= slack / eta).all()
    assert (green.abs() <= slack / eta).all()


def test_spectral_density_responds_to_the_energy():
    """Im G of a free chain is large within the band and small outside it."""
    inside, outside = (
        resolvent_diagonal(torch.zeros(400), 1.0, 1.0, z).imag.mean() for z in (0.3 + 0.05j, 4.0 + 0.05j)
    )
    assert inside > 20 * outside > 0


def sequential_in_single(d, p):
    theta, steps = torch.zeros_like(d[..., 0]), []
    for i in range(d.shape[-1]):
        theta = 1 / (d[..., i] - p[..., i] * theta)
        steps.append(theta)
    return torch.stack(steps, -1)


@pytest.mark.parametrize("eta", (0.05, 0.1, 1.0))
def test_single_precision_is_as_good_as_the_sequential_loop(eta):
    a, l, u, z = physical(16, 1500, 0.7, eta, dtype=torch.float32)
    theta, _ = causal_resolvent_diagonal(a, l, u, z)
    exact = reference.causal_resolvent_diagonal(*(x.to(torch.complex128) for x in (a, l, u, z)))[0]
    largest = exact.abs().amax(-1, keepdim=True)
    error = ((theta - exact).abs() / largest).max()
    loop = ((sequential_in_single(a - z, l * u) - exact).abs() / largest).max()
    assert error <= 10 * loop + 1e-6

    green = resolvent_diagonal(a, l, u, z)
    full = reference.resolvent_diagonal(*(x.to(torch.complex128) for x in (a, l, u, z)))
    assert ((green - full).abs() / full.abs().amax(-1, keepdim=True)).max() <= 10 * loop + 1e-6
    if eta >= 0.1:
        assert (theta - exact).abs().square().mean() < 1e-12
        assert (green - full).abs().square().mean() < 1e-12


@pytest.mark.parametrize("trials, sites", ((6000, 7), (3700, 50), (296, 700), (4, 65_536)))
def test_nothing_overflows(trials, sites):
    """Ten thousand trials in all, diagonals of 1e-3 to 1e3, eta from 0.05, outputs and gradients, in float32."""
    scale, eta = torch.logspace(-3, 3, trials), 0.05 * 100 ** torch.rand(trials, generator=torch.Generator())
    inputs = [x.requires_grad_() for x in physical(trials, sites, scale, eta, dtype=torch.float32)]
    theta, _ = causal_resolvent_diagonal(*inputs)
    green = resolvent_diagonal(*inputs)
    gradients = torch.autograd.grad((theta.abs() + green.abs()).sum(), inputs)
    assert all(torch.view_as_real(x).isfinite().all() for x in (theta, green, *gradients))
    assert (theta.abs() > 0).all() and all((g != 0).any() for g in gradients)
