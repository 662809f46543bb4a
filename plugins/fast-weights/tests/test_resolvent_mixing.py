"""The resolvent in the place of the short convolution: dense inverses in float64, documents, padding, first values."""

import numpy as np
import pytest
import torch
from muse_fast_weights.options import FastWeightsOptions
from muse_fast_weights.resolvent import stationary
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.model.lattice import Lattice
from muse_core.model.states import last_valid
from muse_core.testing import build_component

WIDTH, HEADS, KEY, VALUE, COUNT = 12, 2, 4, 3, 11
CHANNELS = HEADS * (2 * KEY + VALUE)
OPTIONS = {
    "heads": HEADS, "key_size": KEY, "value_size": VALUE, "mixing": "resolvent", "hamiltonians": COUNT,
    "potential": [{"use": "non-hermitian", "scale": 1.0}, {"use": "non-hermitian", "scale": 0.5}],
}  # fmt: skip


def make_layer(**options):
    layer = build_component("memory layer", "fast-weights", OPTIONS | options, width=WIDTH, dtype="float64").double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # hoppings and gains that are no longer those of the start
        for parameter in (layer.resolvent.dynamics.hopping, layer.resolvent.real, layer.resolvent.imaginary):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def make_input(length, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator)


def tokens_of(x, start=0, resets=None, valid=None):
    return Tokens(torch.arange(start, start + x.shape[1]).expand(x.shape[0], -1), 0, resets, valid)


def mixed_by_inverses(layer, x):
    """SiLU(a Re y + b Im y) (B, N, C) of one document, y_i the last row of (H_{0..i} − z)⁻¹ times the projections, with
    the matrices written out: numpy, no kernel, no recursion."""
    mixing = layer.resolvent
    projected = torch.cat([linear(x) for linear in (layer.query, layer.key, layer.value)], -1).numpy()
    terms = [term(x, {}, tokens_of(x)) for term in mixing.potentials.values()]
    diagonal = sum(potential.numpy() - 1j * decay.numpy() for potential, decay in terms)
    lattice = mixing.dynamics
    energy = lattice.energy.numpy() + 1j * (0.05 + np.log1p(np.exp(lattice.broadening.numpy())))
    hopping = np.exp(lattice.hopping.numpy())
    y = np.zeros(projected.shape, dtype=complex)
    size = CHANNELS // COUNT
    for row in range(len(x)):
        for group in range(COUNT):
            channels = slice(group * size, (group + 1) * size)
            length = x.shape[1]
            matrix = np.diag(diagonal[row, :, group] - energy[group])
            matrix = matrix + hopping[group] * (np.eye(length, k=1) + np.eye(length, k=-1))
            for i in range(length):
                last = np.linalg.inv(matrix[: i + 1, : i + 1])[-1]
                y[row, i, channels] = last @ projected[row, : i + 1, channels]
    found = mixing.real.numpy() * y.real + mixing.imaginary.numpy() * y.imag
    return F.silu(torch.from_numpy(found))


def mixed(layer, x, tokens, state=None):
    """Query, key, value and the state."""
    projected, _ = layer.projected(x)
    return layer.resolvent(projected, x, {}, HEADS, KEY, state, tokens)


@torch.no_grad()
def test_it_is_the_dense_inverse_of_the_hamiltonian_of_the_tokens_so_far():
    layer, x = make_layer(), make_input(9)
    (query, key, value), _ = mixed(layer, x, tokens_of(x))
    expected = mixed_by_inverses(layer, x).split((HEADS * KEY, HEADS * KEY, HEADS * VALUE), -1)
    expected = [part.unflatten(-1, (HEADS, -1)) for part in expected]
    for found, part in zip((query, key), expected):
        torch.testing.assert_close(found, part / part.norm(dim=-1, keepdim=True), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(value, expected[2], rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_the_memory_writes_and_reads_what_the_resolvent_gives():
    """W ← e^g (I − β k kᵀ) W + β k vᵀ with the q, k and v of the dense inverses; then the norm and the gate."""
    layer, x = make_layer(), make_input(9)
    both = mixed_by_inverses(layer, x).split((HEADS * KEY, HEADS * KEY, HEADS * VALUE), -1)
    query, key, value = (part.unflatten(-1, (HEADS, -1)) for part in both)
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    log_decay, rate = layer.dynamics(x, None)
    weights, read = torch.zeros(2, HEADS, KEY, VALUE, dtype=torch.float64), []
    for t in range(9):
        weights = log_decay[:, t].exp()[..., None, None] * weights
        new = value[:, t] - torch.einsum("bhk,bhkm->bhm", key[:, t], weights)
        weights = weights + rate[:, t, :, None, None] * key[:, t, :, :, None] * new[:, :, None]
        read.append(torch.einsum("bhk,bhkm->bhm", query[:, t], weights))
    read = torch.stack(read, 1)
    read = read / (read.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.norm.weight
    expected = layer.output((read * F.silu(layer.gate(x)).unflatten(-1, (HEADS, -1))).flatten(2))
    torch.testing.assert_close(layer(x, None, {}, tokens_of(x)).update, expected, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_a_document_starts_where_the_hoppings_vanish():
    layer, x = make_layer(), make_input(9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[0, 4] = True
    found, _ = mixed(layer, x, tokens_of(x, resets=resets))
    alone, _ = mixed(layer, x[:1, 4:], tokens_of(x[:1, 4:]))
    whole, _ = mixed(layer, x, tokens_of(x))
    for part, one, joined in zip(found, alone, whole):
        torch.testing.assert_close(part[:1, 4:], one, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(part[1], joined[1], rtol=1e-10, atol=1e-12)
        assert (joined[0, 4] - part[0, 4]).abs().max() > 1e-3  # the reset did something


@torch.no_grad()
@pytest.mark.parametrize("cuts", [(1, 2, 3, 4, 5, 6, 7, 8), (3,), (4, 5)])
def test_any_split_of_a_stream_is_the_whole(cuts):
    layer, x = make_layer(), make_input(9)
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[1, 4] = True
    whole = layer(x, None, {}, tokens_of(x, resets=resets))
    state, updates = None, []
    for start, stop in zip((0, *cuts), (*cuts, 9)):
        piece = x[:, start:stop]
        step = layer(piece, state, {}, tokens_of(piece, start, resets[:, start:stop]))
        state = step.state
        updates.append(step.update)
    torch.testing.assert_close(torch.cat(updates, 1), whole.update, rtol=1e-9, atol=1e-11)
    for name in ("theta", "y"):
        torch.testing.assert_close(state["resolvent"][name], whole.state["resolvent"][name], rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_padding_leaves_the_state_of_the_last_valid_token():
    """Rows of 7, 0 and 1 tokens in one padded call go on as if each had been read alone."""
    layer, x, lengths = make_layer(), make_input(7, batch=3), (7, 0, 1)
    before = make_input(5, batch=3, seed=1)
    start = layer(before, None, {}, tokens_of(before)).state
    valid = torch.arange(7) < torch.tensor(lengths)[:, None]
    padded = layer(x, start, {}, tokens_of(x, 5, valid=valid)).state
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        expected = {name: {part: x[one] for part, x in parts.items()} for name, parts in start.items()}
        if length:
            alone = x[one, :length]
            expected = layer(alone, expected, {}, tokens_of(alone, 5)).state
        for name in ("theta", "y"):
            found = padded["resolvent"][name][one]
            torch.testing.assert_close(found, expected["resolvent"][name], rtol=1e-10, atol=1e-12)
    nothing = last_valid(x, None, torch.zeros(3, 7, dtype=torch.bool))
    assert nothing.shape == (3, WIDTH) and not nothing.any()


@pytest.mark.parametrize("potential", [[], ["non-hermitian"]])
@torch.no_grad()
def test_it_starts_as_the_present_token_and_decaying_ones_before(potential):
    """Far from the document's start a channel answers an impulse with 1, and n tokens on with Re (−lθ)ⁿ; a potential of
    0.1 with Γ up to 0.3 changes that by no more than a third."""
    layer = build_component(
        "memory layer", "fast-weights", OPTIONS | {"potential": potential}, width=WIDTH, dtype="float64"
    ).double()
    mixing, x, length = layer.resolvent, make_input(80, batch=1), 80
    impulse = torch.zeros(1, length, CHANNELS, dtype=torch.float64)
    impulse[:, 60] = 1.0
    potentials, decay = mixing.diagonal(x, {}, tokens_of(x))
    energy, hopping = (one[:, None] for one in mixing.dynamics())
    values = impulse.unflatten(-1, (COUNT, -1)).transpose(1, 2)
    diagonal = torch.complex(potentials, -decay).transpose(1, 2)
    (y, _), _ = mixing.kernel(diagonal, hopping, hopping, energy, values, initial=None)
    y = y.transpose(1, 2).flatten(2)[0, 60:]
    answer = mixing.real * y.real + mixing.imaginary * y.imag
    theta = stationary(*mixing.dynamics()).repeat_interleave(CHANNELS // COUNT)
    expected = ((-theta) ** torch.arange(20)[:, None]).real  # |l| is 1 at the start
    assert (answer - expected).abs().max() < (0.34 if potential else 1e-6)
    assert theta.abs().max() < 0.79
    assert answer[1:].square().sum(0).max() < 1.0


@pytest.mark.parametrize("taps", ["identity", "uniform"])
def test_first_gradients_are_of_the_size_that_a_convolution_gives(taps):
    """Those of the projections before it, which both layers have, of what mixes, and of all parameters together."""
    plain = {"heads": 4, "key_size": 12, "value_size": 24}
    norms = []
    for more in ({"mixing": "resolvent", "potential": ["non-hermitian"]}, {"taps": taps}):
        layer = build_component("memory layer", "fast-weights", plain | more, width=48, dtype="float64").double()
        generator = torch.Generator().manual_seed(1)
        x, wanted = (torch.randn(4, 128, 48, dtype=torch.float64, generator=generator) for _ in range(2))
        (layer(x, None, {}, tokens_of(x)).update * wanted).mean().backward()
        assert all(one.grad.abs().max() > 0 for one in layer.parameters())
        parts = (layer.query, layer.key, layer.value, layer.resolvent or layer.convolution, layer)
        norms.append([torch.stack([one.grad.norm() for one in part.parameters()]).norm() for part in parts])
    ratios = torch.stack(norms[0]) / torch.stack(norms[1])
    assert ratios.max() < 1.5 and ratios[:3].min() > 0.7, ratios


@torch.no_grad()
def test_the_stationary_diagonal_solves_its_equation_and_is_a_resolvents():
    lattice = Lattice(64, min_broadening=0.05, initial_broadening=(0.5, 4.0)).double()
    lattice.hopping.copy_(torch.linspace(-1, 1, 64))
    energy, hopping = lattice()
    theta = stationary(energy, hopping)
    torch.testing.assert_close(theta, 1 / (-energy - hopping.square() * theta), rtol=1e-9, atol=1e-12)
    assert (theta.imag > 0).all() and (hopping * theta.abs() < 1).all()
    assert lattice.energy.min() == -lattice.energy.max() == pytest.approx(-1.9 * 63 / 64)
    assert energy.imag.min() >= 0.4999 and energy.imag.max() <= 4.0001


@torch.no_grad()
@pytest.mark.parametrize("norm", [True, False])
def test_a_sigmoid_gate_multiplies_what_is_read_behind_the_norm(norm):
    layer = make_layer(gate_activation="sigmoid", norm_epsilon=0.02, output_norm=norm)
    closed = make_layer(gate=False, norm_epsilon=0.02, output_norm=norm)
    missing = closed.load_state_dict(layer.state_dict(), strict=False)
    assert missing.unexpected_keys == ["gate.weight"] and not missing.missing_keys
    layer.output, closed.output = torch.nn.Identity(), torch.nn.Identity()
    x = make_input(6)
    found, read = layer(x, None, {}, tokens_of(x)), closed(x, None, {}, tokens_of(x))
    gate = 1 / (1 + torch.exp(-layer.gate(x)))
    torch.testing.assert_close(found.update, read.update * gate, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.signals["gate"], gate)
    silu = make_layer(norm_epsilon=0.02, output_norm=norm)
    silu.output = torch.nn.Identity()
    torch.testing.assert_close(silu(x, None, {}, tokens_of(x)).update, read.update * F.silu(layer.gate(x)))


@torch.no_grad()
def test_the_norms_epsilon_is_added_to_the_mean_square():
    with_norm, without = make_layer(gate=False, norm_epsilon=0.5), make_layer(gate=False, output_norm=False)
    with_norm.output, without.output = torch.nn.Identity(), torch.nn.Identity()
    x = make_input(6)
    read = without(x, None, {}, tokens_of(x)).update.unflatten(-1, (HEADS, -1))
    expected = (read / (read.square().mean(-1, keepdim=True) + 0.5).sqrt()).flatten(2)
    torch.testing.assert_close(with_norm(x, None, {}, tokens_of(x)).update, expected)


def test_the_default_number_of_hamiltonians_divides_the_channels():
    options = FastWeightsOptions(mixing="resolvent", heads=6, key_size=48, value_size=96)
    assert options.channels(384) == 1152 and options.groups(1152) == 64
    assert options.groups(2 * 59) == 59 and options.groups(67) == 1
