"""What the peers compute, written out, and what their options refuse; test_against_fla.py compares with fla-core."""

import pytest
import torch
from muse_peers.kernels import channel_decay_kernel, missing
from torch.nn import functional as F

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.recipe import check_table
from muse_core.testing import build_component

WIDTH, LENGTH = 16, 11


def built(name, **options):
    layer = build_component("memory layer", name, options, width=WIDTH, dtype="float64").double()
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
        ("rwkv7", {"heads": 5}, "heads is 5, which does not divide the width 48"),
        ("gla", {"heads": 5}, "heads is 5, which does not divide 24"),
        ("mamba2", {"head_size": 40}, "head_size is 40, which does not divide 96"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(use, options, words):
    table = {"name": "test", "model": {"width": 48, "depth": 1, "block": [{"use": use} | options]}}
    with pytest.raises(RecipeError, match=words):
        check_table(table)


@pytest.mark.skipif(missing() is None, reason="fla-core is installed")
def test_kernels_of_fla_are_refused_where_it_is_not_installed():
    with pytest.raises(ValueError, match="needs fla-core, but .*pip install 'muse-peers"):
        channel_decay_kernel("kda", "fla")
