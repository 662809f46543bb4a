"""The layer against dense inverses and determinants, its bounds and its phases."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from muse_resolvent.options import ResolventOptions
from torch import nn

from muse_core.contracts import Tokens
from muse_core.testing import build_component
from muse_core.testing.sequences import make_tokens

WIDTH, HEADS, VALUES, LENGTH = 16, 8, 2, 13
SIGNALS = frozenset({"theta", "broadening", "damped_potential", "decay", "lyapunov", "phase", "spectral_shift"})
OPTIONS = {"heads": HEADS, "potential": [{"use": "non-hermitian", "initial_decay": [0.01, 0.5]}]}


def build(**options):
    layer = build_component("layer", "resolvent", OPTIONS | options, width=WIDTH, publish=SIGNALS, dtype="float64")
    return layer.double()


@pytest.fixture
def x():
    return torch.randn(3, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def tokens():
    return make_tokens(3, LENGTH, documents=True)


def dense(layer, x, tokens):
    """H − z of every document: (row, head, first token, matrix)."""
    potential, decay = layer.diagonal(x, {}, tokens)
    energy, hopping = layer.dynamics()
    for row in range(x.shape[0]):
        starts = sorted({0, *tokens.resets[row].nonzero().flatten().tolist(), x.shape[1]})
        for (start, stop), head in itertools.product(itertools.pairwise(starts), range(layer.heads)):
            off = hopping[head].expand(stop - start - 1)
            matrix = torch.diag(potential[row, start:stop, head] - 1j * decay[row, start:stop, head] - energy[head])
            yield row, head, start, matrix + torch.diag(off, -1) + torch.diag(off, 1)


@torch.no_grad()
def test_theta_and_applied_values_are_last_rows_of_inverses(x, tokens):
    layer = build(gate=False, output_norm=False)
    layer.output = nn.Identity()
    nn.init.normal_(layer.dynamics.hopping, std=0.2)
    step = layer(x, None, {}, tokens)
    y = torch.complex(*step.update[..., : 2 * HEADS * VALUES].unflatten(-1, (2, HEADS, VALUES)).unbind(2))
    theta = torch.view_as_complex(step.signals["theta"].contiguous())
    value = layer.value(x).unflatten(-1, (HEADS, VALUES)).to(y.dtype)
    for row, head, start, matrix in dense(layer, x, tokens):
        for i in range(len(matrix)):
            last = torch.linalg.inv(matrix[: i + 1, : i + 1])[-1]
            torch.testing.assert_close(theta[row, start + i, head], last[-1], rtol=0, atol=1e-11)
            expected = last @ value[row, start : start + i + 1, head]
            torch.testing.assert_close(y[row, start + i, head], expected, rtol=0, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("phase", ["none", "shift"])
def test_phases_are_those_of_the_determinant(x, tokens, phase):
    """exp(iπξ) = the phase of det(H − z)/det(H⁰ − z) of the document so far, and ξ sums the increments."""
    layer = build(phase=phase, potential=[{"use": "non-hermitian", "scale": 1.0}])
    signals = layer(x, None, {}, tokens).signals
    energy, hopping = layer.dynamics()
    for row, head, start, matrix in dense(layer, x, tokens):
        free = torch.diag(-energy[head].expand(len(matrix))) + matrix - torch.diag(matrix.diagonal())
        for i in range(len(matrix)):
            ratio = torch.linalg.det(matrix[: i + 1, : i + 1]) / torch.linalg.det(free[: i + 1, : i + 1])
            shift = signals["spectral_shift"][row, start + i, head]
            torch.testing.assert_close(torch.exp(1j * torch.pi * shift), ratio / ratio.abs(), rtol=0, atol=1e-10)
            total = signals["phase"][row, start : start + i + 1, head].sum() / torch.pi
            torch.testing.assert_close(shift, total, rtol=0, atol=1e-12)
    assert signals["spectral_shift"].abs().max() > 1.0


@settings(max_examples=30, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    hopping=st.floats(-3.0, 3.0),
    min_broadening=st.floats(0.01, 1.0),
    seed=st.integers(0, 2**16),
)
def test_theta_stays_in_the_upper_half_plane_below_the_inverse_broadening(scale, hopping, min_broadening, seed):
    bounds = [1.1 * min_broadening, 2.0]
    layer = build(min_broadening=min_broadening, initial_broadening=bounds, apply=False).float()
    with torch.no_grad():
        layer.dynamics.hopping.fill_(hopping)
        x = scale * torch.randn(2, 40, WIDTH, generator=torch.Generator().manual_seed(seed))
        found = layer(x, None, {}, make_tokens(2, 40)).signals
        theta, broadening = found["theta"], found["broadening"]
    assert broadening.min() > min_broadening
    assert theta[..., 1].min() > 0
    assert (theta.norm(dim=-1) * broadening).max() <= 1 + 1e-5


@torch.no_grad()
def test_energies_start_over_the_band_with_unit_hopping():
    energy, hopping = build(heads=64, initial_broadening=[0.06, 1.0]).dynamics()
    assert -2 < energy.real.min() < -1.8 and 1.8 < energy.real.max() < 2
    assert 0.06 <= energy.imag.min() < 0.07 and 0.9 < energy.imag.max() <= 1.0
    assert torch.equal(hopping, torch.ones_like(hopping))
    halves = energy.imag[:32], energy.imag[32:]
    assert all(half.min() < 0.08 and half.max() > 0.8 for half in halves)


@torch.no_grad()
def test_measures_describe_valid_tokens(x):
    layer = build()
    tokens = make_tokens(3, LENGTH)
    valid = torch.arange(LENGTH) < torch.tensor([[13], [4], [0]])
    found = layer(x, None, {}, tokens._replace(valid=valid)).metrics
    spoilt = torch.where(valid[..., None], x, 1e6)
    again = layer(spoilt, None, {}, tokens._replace(valid=valid)).metrics
    potential, decay = (term[valid] for term in layer.diagonal(x, {}, tokens))
    theta = torch.view_as_complex(layer(x, None, {}, tokens).signals["theta"].contiguous())[valid]
    energy, hopping = layer.dynamics()
    broadening = decay + energy.imag
    lyapunov = -0.5 * (hopping**2 * theta**2).abs().log().mean(0)
    published = layer(x, None, {}, tokens).signals
    torch.testing.assert_close(published["lyapunov"][valid].mean(0), lyapunov)
    torch.testing.assert_close(published["damped_potential"][valid], potential / broadening)
    expected = {
        "broadening": broadening.mean(),
        "broadening_min": broadening.min(),
        "broadening_max": broadening.max(),
        "overdamped": (broadening / potential.abs() > 10).double().mean(),
        "lyapunov": lyapunov.mean(),
        "lyapunov_min": lyapunov.min(),
        "lyapunov_max": lyapunov.max(),
        "non-hermitian/strength": potential.square().mean().sqrt(),
        "memory_length_max": 1 / lyapunov.min(),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)
        torch.testing.assert_close(again[name], value, msg=name)
    assert expected["overdamped"] > 0


@torch.no_grad()
def test_measures_are_not_rounded_by_autocast(x, tokens):
    with torch.autocast("cpu", torch.bfloat16):
        step = build().float()(x.float(), None, {}, tokens)
    torch.testing.assert_close(step.metrics["broadening"], step.signals["broadening"].mean(), rtol=1e-6, atol=0)


@torch.no_grad()
def test_lyapunov_exponent_of_the_free_lattice():
    """At V = Γ = 0 and z = i the influence of a token falls by (√5 − 1)/2 in amplitude, 0.38 in power, a site."""
    layer = build(potential=[])
    layer.dynamics.energy.zero_()
    layer.dynamics.broadening.fill_(torch.tensor(1.0 - 0.05).expm1().log())
    lyapunov = layer(torch.zeros(1, 400, WIDTH, dtype=torch.float64), None, {}, make_tokens(1, 400)).metrics[
        "lyapunov"
    ]
    assert abs(torch.exp(-2 * lyapunov).item() - 0.382) < 2e-3


def shift_of_broadening(layer, shift):
    """Take ``shift`` (H,) from Γ to η, or from η to Γ where it is negative, by the parameters of both."""
    offset, broadening = layer.potentials["non-hermitian"].dynamics.offset, layer.dynamics.broadening
    with torch.no_grad():
        decay = nn.functional.softplus(offset) - shift
        offset.copy_(decay.expm1().log())
        broadening.copy_((nn.functional.softplus(broadening) + shift).expm1().log())


@pytest.mark.parametrize("share", [-0.5, 0.3, 0.95])
@pytest.mark.parametrize("more", [{}, {"phase": "shift"}, {"apply": False}, {"heads": 4, "output": "channels"}])
def test_only_the_sum_of_decay_and_broadening_acts(x, tokens, share, more):
    """Whatever share of a head's Γ is taken over to η: equal output, measures, and gradient of the input; the phase
    alone tells them apart, since H⁰ has η and no Γ."""
    found = []
    for part in (0.0, share):
        layer = build(**more)
        decay = nn.functional.softplus(layer.potentials["non-hermitian"].dynamics.offset.detach())
        shift_of_broadening(layer, part * decay if part >= 0 else part * decay.clamp(max=0.005))
        entry = x.clone().requires_grad_()
        step = layer(entry, None, {}, tokens)
        step.update.square().sum().backward()
        found.append((step, entry.grad))
    (one, gradient), (other, other_gradient) = found
    assert gradient.abs().amax(-1).min() > 1e-8
    for name in ("theta", "broadening", "lyapunov"):
        torch.testing.assert_close(one.signals[name], other.signals[name], rtol=1e-9, atol=1e-11)
    for name, value in one.metrics.items():
        torch.testing.assert_close(other.metrics[name], value, rtol=1e-9, atol=1e-11, msg=name)
    assert (one.signals["decay"] - other.signals["decay"]).abs().max() > 1e-3
    if more.get("phase") is None:
        torch.testing.assert_close(one.update, other.update, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(gradient, other_gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("bounds", [[0.01, 0.5], [0.001, 0.3]])
def test_hermitian_with_more_broadening_is_non_hermitian_at_its_start(x, tokens, bounds):
    """added_broadening takes the place of Γ head by head: equal output and gradient of the input, up to the rounding of
    first values to float32."""
    layers = (
        build(potential=[{"use": "non-hermitian", "initial_decay": bounds}]),
        build(potential=["hermitian"], added_broadening=bounds),
    )
    weights = {name.replace("non-hermitian", "hermitian"): value for name, value in layers[0].state_dict().items()}
    weights["dynamics.broadening"] = layers[1].dynamics.broadening.detach()
    layers[1].load_state_dict({name: weights[name] for name in layers[1].state_dict()})
    found = []
    for layer in layers:
        entry = x.clone().requires_grad_()
        step = layer(entry, None, {}, tokens)
        step.update.square().sum().backward()
        found.append((step, entry.grad))
    (one, gradient), (other, other_gradient) = found
    torch.testing.assert_close(one.update, other.update, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(one.signals["broadening"], other.signals["broadening"], rtol=1e-5, atol=1e-6)
    assert other.signals["decay"].count_nonzero() == 0


def test_memory_acts_inside_the_hamiltonian(x, tokens):
    """Feedback from a memory changes θ itself, and its gradient reaches the answer of the memory."""
    options = OPTIONS | {"potential": ["hermitian", "memory-feedback", "hermitian"]}
    layer = build_component(
        "layer", "resolvent", options, width=WIDTH, publish=SIGNALS, dtype="float64", signals={"memory_before": (2, 3)}
    ).double()
    assert list(layer.potentials) == ["hermitian", "memory-feedback", "hermitian-2"]
    answer = torch.randn(3, LENGTH, 2, 3, dtype=torch.float64, requires_grad=True)
    theta = layer(x, None, {"memory_before": answer}, tokens).signals["theta"]
    silent = layer(x, None, {"memory_before": torch.zeros_like(answer)}, tokens).signals["theta"]
    assert (theta - silent).abs().amax(dim=(0, 2, 3)).min() > 1e-3
    theta[:, 5].square().sum().backward()
    assert answer.grad[:, 5].abs().min() > 0
    assert answer.grad[:, 6:].count_nonzero() == 0


def test_an_impossible_broadening_is_named():
    from muse_resolvent.options import ResolventOptions

    with pytest.raises(ValueError, match="initial_broadening must be two numbers with min_broadening = 0.1 <"):
        ResolventOptions(min_broadening=0.1)


@torch.no_grad()
def test_state_has_a_fixed_size(x, tokens):
    layer = build(phase="shift")
    state = layer(x, None, {}, tokens).state
    shapes = {"theta": (3, HEADS, 2), "y": (3, HEADS, VALUES, 2), "theta0": (3, HEADS, 2), "xi": (3, HEADS)}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    following = Tokens(torch.arange(1).expand(3, -1) + LENGTH)
    assert {n: tuple(t.shape) for n, t in layer(x[:, :1], state, {}, following).state.items()} == shapes
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())


@torch.no_grad()
def test_channels_are_read_by_two_gains_each():
    """output = "channels": a ⊙ Re y + b ⊙ Im y of the resolvent applied to the input itself."""
    options = {"heads": 4, "output": "channels"}
    layer = build_component("layer", "resolvent", options, width=12, dtype="float64").double()
    x = torch.randn(2, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(torch.arange(9).expand(2, -1))
    potential, decay = layer.diagonal(x, {}, tokens)
    energy, hopping = layer.dynamics()
    theta = torch.zeros(2, 4, dtype=torch.complex128)
    y = torch.zeros(2, 4, 3, dtype=torch.complex128)
    for t in range(9):
        theta = 1 / (torch.complex(potential[:, t], -decay[:, t]) - energy - (t > 0) * hopping**2 * theta)
        y = theta[..., None] * (x[:, t].view(2, 4, 3) - (t > 0) * hopping[:, None] * y)
        expected = layer.channels.real * y.flatten(1).real + layer.channels.imaginary * y.flatten(1).imag
        torch.testing.assert_close(layer(x, None, {}, tokens).update[:, t], expected, rtol=1e-9, atol=1e-11)


def test_channels_refuse_what_they_do_not_read():
    with pytest.raises(ValueError, match="leave out apply, value_size and phase"):
        ResolventOptions(output="channels", phase="increment")
