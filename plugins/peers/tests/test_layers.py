"""What the peers compute, written out, and what their options refuse; test_against_fla.py compares with fla-core."""

import pytest
import torch
from muse_peers.kernels import channel_decay_kernel, missing
from muse_peers.mamba3 import turns
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.model.kernels import operation_of
from muse_core.recipe import check_table
from muse_core.testing import build_component

WIDTH, LENGTH = 16, 11


def built(name, kind="memory layer", **options):
    layer = build_component(kind, name, options, width=WIDTH, dtype="float64").double()
    x = torch.randn(2, LENGTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return layer, x, Tokens(torch.arange(LENGTH).expand(2, -1))


def convolved(x, convolution):
    padded = F.pad(x, (0, 0, convolution.span - 1, 0))
    return F.silu(
        sum(tap * padded[:, convolution.span - 1 - lag :][:, :LENGTH] for lag, tap in enumerate(convolution.taps))
    )


@pytest.mark.parametrize("negative", [False, True])
@torch.no_grad()
def test_gated_deltanet_is_the_gated_delta_rule(negative):
    layer, x, tokens = built("gated-deltanet", heads=2, key_size=3, negative_eigenvalues=negative)
    projected = torch.cat((layer.query(x), layer.key(x), layer.value(x)), dim=-1)
    query, key, value = convolved(projected, layer.convolution).split((6, 6, 12), dim=-1)
    query, key, value = (part.unflatten(-1, (2, -1)) for part in (query, key, value))
    query, key = query / query.norm(dim=-1, keepdim=True), key / key.norm(dim=-1, keepdim=True)
    dynamics = layer.dynamics
    log_decay = -dynamics.log_amplitude.exp() * F.softplus(dynamics.decay(x) + dynamics.bias)
    rate = (2 if negative else 1) * torch.sigmoid(dynamics.rate(x))
    weights, read = torch.zeros(2, 2, 3, 6, dtype=torch.float64), []
    for t in range(LENGTH):
        weights = log_decay[:, t].exp()[..., None, None] * weights
        wrong = value[:, t] - torch.einsum("bhk,bhkm->bhm", key[:, t], weights)
        weights = weights + torch.einsum("bh,bhk,bhm->bhkm", rate[:, t], key[:, t], wrong)
        read.append(torch.einsum("bhk,bhkm->bhm", query[:, t] / 3**0.5, weights))
    normed = F.rms_norm(torch.stack(read, 1), (6,), layer.norm.weight, 1e-5)
    normed = normed * F.silu(layer.gate(x)).unflatten(-1, (2, -1))
    step = layer(x, None, {}, tokens)
    torch.testing.assert_close(step.update, layer.output(normed.flatten(2)), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(step.state["memory"]["weights"], weights, rtol=1e-9, atol=1e-11)


def mamba3_written_out(layer, x, resets, rotated):
    """Token by token in complex numbers: the pairs as they are, the states that do not turn with an angle of 0."""
    heads, dynamics = layer.heads, layer.dynamics
    gate, value, key, query = layer.input(x).split((layer.inner, layer.inner, layer.states, layer.states), dim=-1)
    step, decay, share, angle = dynamics.projection(x).split((heads, heads, heads, rotated // 2), dim=-1)
    step, share = F.softplus(step + dynamics.bias), share.sigmoid()
    rate = -F.softplus(decay).clamp(min=1e-4)

    def complex_states(projected, norm, bias):
        normed = F.rms_norm(projected, (layer.states,), norm.weight, 1e-5)[:, :, None] + bias
        turning = torch.view_as_complex(normed[..., :rotated].unflatten(-1, (-1, 2)).contiguous())
        return torch.cat((turning, normed[..., rotated:].to(turning.dtype)), dim=-1)

    key = complex_states(key, layer.key_norm, layer.key_bias)
    query = complex_states(query, layer.query_norm, layer.query_bias)
    value = value.unflatten(-1, (heads, -1))
    turn = F.pad(-torch.pi * angle.tanh(), (0, layer.states - rotated))[:, :, None].expand_as(key)
    factor = (torch.complex(rate[..., None].expand_as(turn), turn) * step[..., None]).exp()
    state = torch.zeros(*key[:, 0].shape, value.shape[-1], dtype=key.dtype)
    written, outputs = torch.zeros_like(state), []
    for t in range(x.shape[1]):
        state, written = (part.masked_fill(resets[:, t, None, None, None], 0.0) for part in (state, written))
        state = factor[:, t, ..., None] * (state + ((1 - share) * step)[:, t, :, None, None] * written)
        written = key[:, t, ..., None] * value[:, t, ..., None, :]
        state = state + (share * step)[:, t, :, None, None] * written
        read = (query[:, t].conj()[..., None] * state).sum(-2).real
        outputs.append(read + layer.skip[:, None] * value[:, t])
    return layer.output(torch.stack(outputs, 1).flatten(2) * F.silu(gate))


@pytest.mark.parametrize("rotated", [0.5, 1.0])
def test_mamba3_is_a_complex_recurrence_by_the_trapezoidal_rule(rotated):
    layer, x, tokens = built("mamba3", states=8, head_size=8, rotated=rotated)
    resets = torch.zeros(2, LENGTH, dtype=torch.bool)
    resets[0, 4] = resets[1, 7] = resets[1, 8] = True
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (layer.dynamics.projection.weight, layer.dynamics.bias, layer.key_bias, layer.query_bias):
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    inputs = [x.requires_grad_(), *layer.parameters()]
    found = layer(x, None, {}, tokens._replace(resets=resets)).update
    expected = mamba3_written_out(layer, x, resets, round(8 * rotated))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    cotangent = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * cotangent).sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@torch.no_grad()
def test_the_angle_of_mamba3_stays_small_over_many_tokens():
    """In float32 the sum of 100,000 angles of about 1 would be known to 0.01 only."""
    angle = torch.rand(1, 100_000, 1, 1, generator=torch.Generator().manual_seed(0)) * 2
    exact = angle.double().cumsum(1).remainder(2 * torch.pi)
    found = turns(angle, None, None).double()
    assert ((found - exact + torch.pi).remainder(2 * torch.pi) - torch.pi).abs().max() < 1e-6


@torch.no_grad()
def test_later_layers_of_rwkv7_mix_in_the_first_values():
    first, x, tokens = built("rwkv7", heads=2)
    assert first.mix is None
    values = first(x, None, {}, tokens).signals["first_value"]
    later = build_component(
        "memory layer", "rwkv7", {"heads": 2}, width=WIDTH, dtype="float64", block=1, signals={"first_value": (WIDTH,)}
    ).double()
    step = later(x, None, {"first_value": values}, tokens)
    torch.testing.assert_close(step.signals["first_value"], values)
    other = later(x, None, {"first_value": values + 1}, tokens)
    assert (other.update - step.update).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("use", "options", "words"),
    [
        ("gated-deltanet", {"heads": 5}, "3/4 of the width 48 over heads = 5 is not a whole number"),
        ("kda", {"heads": 5}, "heads is 5, which does not divide the width 48"),
        ("gated-deltanet-2", {"heads": 5}, "heads is 5, which does not divide the width 48"),
        ("rwkv7", {"heads": 5}, "heads is 5, which does not divide the width 48"),
        ("gla", {"heads": 5}, "heads is 5, which does not divide 24"),
        ("mamba2", {"head_size": 40}, "head_size is 40, which does not divide 96"),
        ("mamba3", {"head_size": 40}, "head_size is 40, which does not divide 96"),
        ("gla", {"expand_key": 0.01}, "expand_key is 0.01, which leaves nothing of the width 48"),
        ("gla", {"expand_value": 0.01}, "expand_value is 0.01, which leaves nothing of the width 48"),
        ("mamba2", {"expand": 0.01}, "expand is 0.01, which leaves nothing of the width 48"),
        ("mamba3", {"expand": 0.01}, "expand is 0.01, which leaves nothing of the width 48"),
        ("mamba3", {"states": 3}, "rotated is 0.5, which leaves no pair of 3 states to turn - choose more"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(use, options, words):
    table = {"name": "test", "model": {"width": 48, "depth": 1, "block": [{"use": use} | options]}}
    with pytest.raises(RecipeError, match=words):
        check_table(table)


@pytest.mark.parametrize("name", ["gla", "kda", "rwkv7"])
@torch.no_grad()
def test_under_autocast_a_kernel_is_given_values_in_bfloat16(name):
    """By which fla-core's is taken: values in float32 would leave it unused without a word."""
    layer = build_component("memory layer", name, {"heads": 2}, width=WIDTH)
    computed, given = layer.recurrence, []

    def recorded(query, writing, *rest):
        given.append(writing.value.dtype)
        return computed(query, writing, *rest)

    layer.recurrence = recorded
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.randn(2, LENGTH, WIDTH), None, {}, Tokens(torch.arange(LENGTH).expand(2, -1)))
    assert given == [torch.bfloat16]


@pytest.mark.parametrize("name", ["gated-deltanet-2", "gla", "kda", "rwkv7"])
@torch.no_grad()
def test_scores_are_computed_by_the_kernel_that_was_bound(name, monkeypatch):
    """So that a recipe's choice of kernels is what computes, and the lock names it."""
    layer = build_component("memory layer", name, {"heads": 2}, width=WIDTH)
    bound, widths = layer.recurrence.keywords["scores"], []
    assert operation_of(bound) == "decayed_scores"
    computed = bound.function

    def counted(query, *given, **more):
        widths.append(query.shape[-1])
        return computed(query, *given, **more)

    monkeypatch.setattr(bound, "function", counted)
    layer(torch.randn(2, LENGTH, WIDTH), None, {}, Tokens(torch.arange(LENGTH).expand(2, -1)))
    assert widths == [bound.request.sizes["key"]]


@pytest.mark.skipif(missing() is None, reason="fla-core is installed")
def test_kernels_of_fla_are_refused_where_it_is_not_installed():
    with pytest.raises(ValueError, match="needs fla-core, but .*pip install 'muse-peers"):
        channel_decay_kernel("kda", "fla")


@pytest.mark.parametrize("recurrent", [True, False])
@torch.no_grad()
def test_rg_lru_is_the_recurrent_block_of_griffin(recurrent):
    layer, x, tokens = built("rg-lru", "layer", heads=2, expand=1.0, recurrence=recurrent)
    resets = torch.zeros(2, LENGTH, dtype=torch.bool)
    resets[0, 4] = True
    convolution = layer.convolution
    hidden, before = [], torch.zeros(2, WIDTH, dtype=torch.float64)
    mapped, starts = layer.input(x), torch.tensor([[4], [LENGTH]])
    for t in range(LENGTH):
        begin = torch.where(t >= starts, starts, 0)
        u = convolution.bias + sum(
            tap * torch.where(t - lag >= begin, mapped[:, max(0, t - lag)], 0.0)
            for lag, tap in enumerate(convolution.taps)
        )
        if recurrent:
            blocks = u.unflatten(-1, (2, -1))
            recurrence, entering = (
                torch.einsum("bhi,hij->bhj", blocks, weight).flatten(1).add(bias).sigmoid()
                for weight, bias in zip(layer.gates.maps, layer.gates.biases)
            )
            factor = torch.exp(-8 * F.softplus(layer.forgetting) * recurrence)
            weight = torch.where(t == begin, 1.0, (1 - factor**2).sqrt())
            u = before = torch.where(t == begin, 0.0, factor) * before + weight * entering * u
        hidden.append(u)
    expected = layer.output(F.gelu(layer.gate(x)) * torch.stack(hidden, 1))
    step = layer(x, None, {}, tokens._replace(resets=resets))
    torch.testing.assert_close(step.update, expected, rtol=1e-9, atol=1e-11)
    assert ("hidden" in step.state) == recurrent


def test_the_recurrence_of_channels_has_first_and_second_derivatives():
    from muse_peers.scan import recurrence

    generator = torch.Generator().manual_seed(0)
    factor = torch.rand(2, 5, 3, dtype=torch.float64, generator=generator)
    factor[0, 2] = 0.0
    term, initial = (torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((2, 5, 3), (2, 3)))
    inputs = tuple(part.requires_grad_() for part in (factor, term, initial))
    assert torch.autograd.gradcheck(recurrence, inputs) and torch.autograd.gradgradcheck(recurrence, inputs)
    hidden, by_hand = initial, []
    for t in range(5):
        hidden = factor[:, t] * hidden + term[:, t]
        by_hand.append(hidden)
    torch.testing.assert_close(recurrence(*inputs), torch.stack(by_hand, 1))


@torch.no_grad()
def test_gates_of_gated_deltanet_2_begin_near_a_half_and_decays_within_their_bounds():
    """Of a stream of normal numbers: the authors' first weights, for A in 1 to 16 and first steps in 0.001 to 0.1."""
    layer = build_component("memory layer", "gated-deltanet-2", {"heads": 4}, width=256, dtype="float64").double()
    x = torch.randn(4, 64, 256, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for gate in (layer.erase, layer.write):
        opening = gate(x).sigmoid()
        assert abs(opening.mean() - 0.5) < 0.01 and 0.02 < opening.std() < 0.06
    assert 0 <= layer.decay.log_amplitude.min() and layer.decay.log_amplitude.max() <= torch.tensor(16.0).log()
    steps = F.softplus(layer.decay.bias)
    assert 0.001 <= steps.min() < 0.003 and 0.03 < steps.max() <= 0.1
