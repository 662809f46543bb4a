"""The filter against its formula in complex numbers, its bounds, and what it does to structured weights."""

import pytest
import torch
from muse_resonance.basis import fourier_basis, random_basis, zeta_basis

from muse_core.contracts import Period
from muse_core.errors import RecipeError
from muse_core.testing import build_component

HEADS, KEY, VALUE = 2, 24, 10
PERIOD = Period(torch.zeros(3, HEADS), torch.ones(3, HEADS), torch.zeros(3, dtype=torch.bool))


def make_filter(key=KEY, **options):
    """In float64, with a basis that was not rounded."""
    made = build_component("filter", "resonance", options, key_width=key).double()
    if options.get("basis", "zeta") == "zeta":
        made.basis = torch.stack((zeta_basis(key).real, zeta_basis(key).imag))
    return made


def weights(seed=0, key=KEY):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, HEADS, key, VALUE, dtype=torch.float64, generator=generator)


def written_out(w, threshold, sharpness, values=None):
    """W̃ = Uᴴ W U_M; mask its rows by their norms; U W̃ U_Mᴴ; real part."""
    basis = zeta_basis(w.shape[-2])
    values = torch.eye(w.shape[-1], dtype=torch.complex128) if values is None else values
    modes = basis.mH @ w.to(torch.complex128) @ values
    amplitude = modes.abs().square().sum(-1).sqrt()
    relative = amplitude / amplitude.amax(-1, keepdim=True)
    mask = 1 / (1 + (threshold / relative) ** sharpness)
    return (basis @ (mask[..., None] * modes) @ values.mH).real, relative


@pytest.mark.parametrize("threshold, sharpness", [(0.1, 8.0), (0.6, 3.0), (0.9, 20.0)])
def test_it_is_the_formula_written_out_with_or_without_a_basis_of_the_values(threshold, sharpness):
    filter_, w = make_filter(threshold=threshold, sharpness=sharpness), weights()
    filtered, state, metrics = filter_(torch.zeros_like(w), w, PERIOD, None)
    values = random_basis(VALUE, torch.Generator().manual_seed(1))
    for expected, relative in (written_out(w, threshold, sharpness), written_out(w, threshold, sharpness, values)):
        torch.testing.assert_close(filtered, expected, rtol=0, atol=1e-12)
        below = (relative < threshold).double().mean()
        assert metrics["share_filtered"].item() == pytest.approx(below.item())
        assert metrics["modes"].item() == pytest.approx(KEY * (1 - below.item()))
    assert state is None
    kept = filtered.square().sum() / w.square().sum()
    assert metrics["energy_kept"].item() == pytest.approx(kept.item()) and kept < 1


def test_threshold_near_nothing_leaves_the_weights_alone():
    w = weights()
    filtered, _, metrics = make_filter(threshold=1e-12)(w, w, PERIOD, None)
    torch.testing.assert_close(filtered, w, rtol=1e-10, atol=1e-12)
    assert metrics["share_filtered"] == 0 and metrics["energy_kept"].item() == pytest.approx(1)


@pytest.mark.parametrize("basis", ["zeta", "fourier", "random"])
def test_the_norm_never_grows(basis):
    filter_ = make_filter(basis=basis, threshold=0.7)
    for seed in range(20):
        w = weights(seed)
        filtered, _, _ = filter_(w, w, PERIOD, None)
        assert (filtered.flatten(2).norm(dim=-1) <= w.flatten(2).norm(dim=-1) * (1 + 1e-12)).all()


def test_a_resonant_mode_survives_among_noise():
    """Weights along one mode's real part, under noise of a tenth of its size: what remains is the mode."""
    filter_ = make_filter(threshold=0.5, sharpness=16.0)
    mode = zeta_basis(KEY)[:, 5].real
    clean = (mode / mode.norm())[:, None] * torch.ones(VALUE, dtype=torch.float64)
    noisy = clean + 0.1 * weights()
    filtered, _, _ = filter_(noisy, noisy, PERIOD, None)
    assert (filtered - clean).square().mean() < 0.5 * (noisy - clean).square().mean()


def test_bases_are_what_the_option_says():
    fourier, random = make_filter(basis="fourier"), make_filter(basis="random")
    assert torch.equal(fourier.basis[0].float(), fourier_basis(KEY).real.float())
    assert not torch.allclose(random.basis, fourier.basis) and not torch.allclose(random.basis, make_filter().basis)
    again = build_component("filter", "resonance", {"basis": "random"}, key_width=KEY, seed=1)
    assert not torch.allclose(random.basis.float(), again.basis), "another seed is another basis"


def test_the_basis_is_stored_with_the_model():
    assert list(make_filter().state_dict()) == ["basis"]
    assert list(make_filter().parameters()) == []


def test_gradients_are_those_of_finite_differences():
    filter_ = make_filter(key=6, threshold=0.5, sharpness=4.0)
    w = weights(key=6)[:1, :1].requires_grad_()
    period = Period(*(x[:1] for x in PERIOD))
    torch.autograd.gradcheck(lambda w: filter_(w, w, period, None)[0], (w,))


def test_a_memory_wider_than_the_stored_zeros_is_refused():
    with pytest.raises(RecipeError, match="1024 are stored"):
        build_component("filter", "resonance", key_width=1025)


def test_a_memory_that_keeps_its_width_to_itself_is_refused():
    with pytest.raises(RecipeError, match="does not say its key width"):
        build_component("filter", "resonance", key_width=None)
