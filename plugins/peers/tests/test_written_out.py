"""Mamba-2, GLA, KDA, Gated DeltaNet-2 and RWKV-7 token by token in float64, as their papers write them, with gradients.

test_against_fla.py compares with fla-core's layers where that is installed.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.testing import build_component

WIDTH, LENGTH, HEADS = 16, 9, 2


def starts():
    """Documents that begin inside, one of them of a single token; the second row begins with one."""
    resets = torch.zeros(2, LENGTH, dtype=torch.bool)
    resets[0, 4] = resets[1, 0] = resets[1, 6] = resets[1, 7] = True
    return resets


def by_head(x):
    return x.unflatten(-1, (HEADS, -1))


def convolved(x, convolution):
    """SiLU of the taps' sum over the tokens of one document, with the bias where there is one."""
    document, rows = starts().cumsum(1), []
    for t in range(LENGTH):
        total = torch.zeros_like(x[:, 0]) + getattr(convolution, "bias", 0.0)
        for lag in range(min(t, convolution.span - 1) + 1):
            same = (document[:, t - lag] == document[:, t])[:, None]
            total = total + torch.where(same, convolution.taps[lag] * x[:, t - lag], 0)
        rows.append(F.silu(total))
    return torch.stack(rows, 1)


def read_of(query, key, value, change):
    """W_tᵀ q_t of W_t = change_t(W_{t−1}) + k vᵀ with W zero where a document starts; (B, N, H, …) each."""
    weights, reads = torch.zeros(2, HEADS, key.shape[-1], value.shape[-1], dtype=key.dtype), []
    for t in range(LENGTH):
        weights = weights.masked_fill(starts()[:, t, None, None, None], 0.0)
        weights = change(t, weights) + key[:, t, ..., None] * value[:, t, ..., None, :]
        reads.append((weights * query[:, t, ..., None]).sum(-2))
    return torch.stack(reads, 1)


def low_rank(one, x, activation=lambda x: x):
    wide = activation(x @ one.down.weight.T) @ one.up.weight.T
    return wide if one.bias is None else wide + one.bias


def mamba2(layer, x):
    gate, mixed = layer.input(x).split((layer.inner, layer.inner + 2 * layer.states), -1)
    value, key, query = convolved(mixed, layer.convolution).split((layer.inner, layer.states, layer.states), -1)
    value = by_head(value)
    key, query = (part[:, :, None].expand(-1, -1, HEADS, -1) for part in (key, query))
    step = F.softplus(layer.dynamics.step(x) + layer.dynamics.bias)
    factor = (-layer.dynamics.log_amplitude.exp() * step).exp()
    read = read_of(query, step[..., None] * key, value, lambda t, weights: factor[:, t, :, None, None] * weights)
    read = (read + layer.skip[:, None] * value).flatten(2) * F.silu(gate)
    return layer.output(F.rms_norm(read, (layer.inner,), layer.norm.weight, 1e-5))


def gla(layer, x):
    query, key, value, gate = (by_head(one(x)) for one in (layer.query, layer.key, layer.value, layer.gate))
    factor = by_head(F.logsigmoid(low_rank(layer.dynamics.decay, x)) / 16).exp()
    read = read_of(query / math.sqrt(layer.key_width), key, value, lambda t, weights: factor[:, t, ..., None] * weights)
    normed = F.rms_norm(read, read.shape[-1:], layer.norm.weight, 1e-5)
    return layer.output((normed * F.silu(gate)).flatten(2))


def kda(layer, x, decay=None):
    projected = torch.cat((layer.query(x), layer.key(x), layer.value(x)), -1)
    widths = (HEADS * layer.key_width, HEADS * layer.key_width, HEADS * layer.value_width)
    query, key, value = (by_head(part) for part in convolved(projected, layer.convolution).split(widths, -1))
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    dynamics = layer.dynamics
    if decay is None:
        factor = by_head(F.softplus(low_rank(dynamics.decay, x) + dynamics.bias))
        factor = (-dynamics.log_amplitude.exp()[:, None] * factor).exp()
    else:
        factor = (-decay).exp()
    rate = torch.sigmoid(dynamics.rate(x))[..., None]

    def change(t, weights):
        weights = factor[:, t, ..., None] * weights
        found = (key[:, t, ..., None] * weights).sum(-2)
        return weights - (rate * key)[:, t, ..., None] * found[..., None, :]

    read = read_of(query / math.sqrt(layer.key_width), rate * key, value, change)
    normed = F.rms_norm(read, read.shape[-1:], layer.norm.weight, 1e-5)
    return layer.output((normed * by_head(torch.sigmoid(low_rank(layer.gate, x)))).flatten(2))


def gated_deltanet_2(layer, x):
    projected = torch.cat((layer.query(x), layer.key(x), layer.value(x)), -1)
    widths = (HEADS * layer.key_width, HEADS * layer.key_width, HEADS * layer.value_width)
    query, key, value = (by_head(part) for part in convolved(projected, layer.convolution).split(widths, -1))
    query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
    factor = by_head(F.softplus(low_rank(layer.decay.map, x) + layer.decay.bias))
    factor = (-layer.decay.log_amplitude.exp()[:, None] * factor).exp()
    erase, write = by_head(layer.most * torch.sigmoid(layer.erase(x))), by_head(torch.sigmoid(layer.write(x)))

    def change(t, weights):
        weights = factor[:, t, ..., None] * weights
        found = ((erase * key)[:, t, ..., None] * weights).sum(-2)
        return weights - key[:, t, ..., None] * found[..., None, :]

    read = read_of(query / math.sqrt(layer.key_width), key, write * value, change)
    normed = F.rms_norm(read, read.shape[-1:], layer.norm.weight, 1e-5)
    return layer.output((normed * by_head(F.silu(low_rank(layer.gate, x)))).flatten(2))


def rwkv7(layer, x, first=None):
    before = F.pad(x[:, :-1], (0, 0, 1, 0)).masked_fill(starts()[..., None], 0.0)
    mixed = {name: (1 - gain) * x + gain * before for name, gain in layer.shift.items()}
    receptance, key, value = layer.read(mixed["read"]), layer.key(mixed["key"]), layer.value(mixed["value"])
    if first is not None:
        value = value + (first - value) * torch.sigmoid(low_rank(layer.mix, mixed["value"]))
    factor = by_head((-math.exp(-0.5) * torch.sigmoid(low_rank(layer.decay, mixed["decay"], torch.tanh))).exp())
    rate = torch.sigmoid(low_rank(layer.rate, mixed["rate"]))
    removed = F.normalize(by_head(key * layer.removed), dim=-1)
    key = by_head(key * (1 + (rate - 1) * layer.strengthened))
    receptance, value, rate = by_head(receptance), by_head(value), by_head(rate)

    def change(t, weights):
        found = (removed[:, t, ..., None] * weights).sum(-2)
        return factor[:, t, ..., None] * weights - (rate * removed)[:, t, ..., None] * found[..., None, :]

    read = read_of(receptance, key, value, change)
    normed = F.group_norm(read.flatten(0, 1).flatten(1), HEADS, layer.norm.weight, layer.norm.bias, layer.size * 1e-5)
    direct = (receptance * key * layer.bonus).sum(-1, keepdim=True) * value
    gate = low_rank(layer.gate, mixed["gate"], torch.sigmoid)
    return layer.output((normed.view_as(x) + direct.flatten(2)) * gate)


@pytest.mark.parametrize(
    ("written_out", "options"),
    [(mamba2, {"states": 4, "head_size": 16}), (gla, {"heads": HEADS}), (kda, {"heads": HEADS}),
     (gated_deltanet_2, {"heads": HEADS, "key_size": 6, "expand_value": 1.5}),
     (gated_deltanet_2, {"heads": HEADS, "negative_eigenvalues": True}), (rwkv7, {"heads": HEADS})],
    ids=lambda given: getattr(given, "__name__", ""),
)  # fmt: skip
def test_a_peer_is_what_its_paper_writes(written_out, options):
    layer, x, generator = lively(written_out.__name__.replace("_", "-"), options)
    found = layer(x, None, {}, Tokens(torch.arange(LENGTH).expand(2, -1), resets=starts())).update
    agree(found, written_out(layer, x), [x, *layer.parameters()], generator)


def test_later_layers_of_rwkv7_take_a_share_of_the_first_values():
    layer, x, generator = lively("rwkv7", {"heads": HEADS}, {"first_value": (WIDTH,)})
    first = torch.randn(2, LENGTH, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = Tokens(torch.arange(LENGTH).expand(2, -1), resets=starts())
    found = layer(x, None, {"first_value": first}, tokens).update
    agree(found, rwkv7(layer, x, first), [x, first, *layer.parameters()], generator)


def test_gated_deltanet_2_with_one_gate_is_kda():
    """But for the gate before the output, which is open in both here."""
    ours, x, _ = lively("gated-deltanet-2", {"heads": HEADS})
    theirs, _, _ = lively("kda", {"heads": HEADS})
    with torch.no_grad():
        for name in ("query", "key", "value", "convolution", "norm", "output"):
            getattr(theirs, name).load_state_dict(getattr(ours, name).state_dict())
        theirs.dynamics.decay.load_state_dict(ours.decay.map.state_dict())
        theirs.dynamics.bias.copy_(ours.decay.bias)
        theirs.dynamics.log_amplitude.copy_(ours.decay.log_amplitude)
        for gate in (ours.erase, ours.write):  # the first head's rate in all its channels, then the second's
            gate.weight.copy_(theirs.dynamics.rate.weight.repeat_interleave(WIDTH // HEADS, 0))
        for layer, opening in ((ours, 40.0), (theirs, 40.0)):
            layer.gate.up.weight.zero_()
            layer.gate.bias.fill_(opening)
    tokens = Tokens(torch.arange(LENGTH).expand(2, -1), resets=starts())
    found, expected = (layer(x, None, {}, tokens).update for layer in (ours, theirs))
    torch.testing.assert_close(found, 40.0 * expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("given", "channels_of_one"), [(8, 4), (32, 1), (96, None)])
def test_channels_of_kda_decay_as_the_heads_of_a_signal(given, channels_of_one):
    """(2 heads of 16 keys) Each of its heads is that of equally many channels, or a channel has the mean of three."""
    layer, x, generator = lively("kda", {"heads": HEADS, "key_size": 16, "decay": "signal"}, {"decay": (given,)})
    assert not any("dynamics.decay" in name or "bias" in name for name, _ in layer.dynamics.named_parameters())
    gamma = torch.rand(2, LENGTH, given, generator=generator, dtype=torch.float64).requires_grad_()
    tokens = Tokens(torch.arange(LENGTH).expand(2, -1), resets=starts())
    found = layer(x, None, {"decay": gamma}, tokens).update
    if channels_of_one is None:
        channels = torch.stack([gamma[..., first::3] for first in range(3)]).mean(0)
    else:
        channels = torch.cat([gamma[..., n : n + 1].expand(-1, -1, channels_of_one) for n in range(given)], -1)
    agree(found, kda(layer, x, channels.reshape(2, LENGTH, HEADS, 16)), [x, gamma, *layer.parameters()], generator)
    grown = layer(x, None, {"decay": -gamma}, tokens).update
    torch.testing.assert_close(grown, kda(layer, x, torch.zeros(2, LENGTH, HEADS, 16)), rtol=1e-9, atol=1e-11)


def test_a_signal_that_channels_do_not_share_evenly_is_refused():
    with pytest.raises(RecipeError, match="the decay signal has 5 heads, .* of channels = 32"):
        build_component("memory layer", "kda", {"heads": 2, "key_size": 16, "decay": "signal"}, signals={"decay": (5,)})


def lively(use, options, signals=None):
    layer = build_component("memory layer", use, options, width=WIDTH, dtype="float64", signals=signals).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():  # what begins with zeros or ones would hide what is behind it
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer, torch.randn(2, LENGTH, WIDTH, generator=generator, dtype=torch.float64).requires_grad_(), generator


def agree(found, expected, inputs, generator):
    """In value and in every gradient."""
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)
    cotangent = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    gradients = [torch.autograd.grad((y * cotangent).sum(), inputs) for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)
