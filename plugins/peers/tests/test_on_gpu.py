"""On a GPU: every peer in float32 and bfloat16 against float64 on the CPU, and fla-core's kernels against ours.

The differences are printed (pytest -s) as shares of the largest number.
"""

from functools import partial
from importlib import import_module

import pytest
import torch
from muse_peers.kernels import channel_decay_kernel, missing
from muse_peers.recurrence import recurrence

from muse_core.contracts import Tokens
from muse_core.testing import build_component

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDTH, LENGTH, BATCH = 128, 200, 2
PEERS = {
    "gated-deltanet": {"heads": 2},
    "gated-deltanet-2": {"heads": 2},
    "kda": {"heads": 2},
    "gla": {"heads": 2},
    "rwkv7": {"heads": 2},
    "mamba2": {"states": 64},
    "mamba3": {"states": 64},
    "rg-lru": {},
}


def built(name, **changes):
    return build_component("layer" if name == "rg-lru" else "memory layer", name, PEERS[name], width=WIDTH, **changes)


def sequence():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, LENGTH, WIDTH, generator=generator)
    resets = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    resets[0, 70] = resets[1, 3] = resets[1, 131] = True
    return x, Tokens(torch.arange(LENGTH).expand(BATCH, -1), 0, resets)


def answers(layer, x, tokens, autocast=False):
    """Update and the gradients of x and of all parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast(x.device.type, torch.bfloat16, enabled=autocast):
        update = layer(x, None, {}, tokens).update
    cotangent = torch.randn(update.shape, generator=torch.Generator().manual_seed(1)).to(update)
    return [update.detach(), *torch.autograd.grad((update * cotangent).sum(), [x, *layer.parameters()])]


def difference(found, expected):
    pairs = [(one.cpu().double(), other.cpu().double()) for one, other in zip(found, expected)]
    return max(((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).item() for one, other in pairs)


def moved(tokens):
    return Tokens(tokens.positions.cuda(), tokens.offset, tokens.resets.cuda())


@pytest.mark.parametrize("name", PEERS)
def test_precisions_agree(name):
    x, tokens = sequence()
    layer = built(name, dtype="float64")
    exact = answers(layer.double(), x.double(), tokens)
    layer = built(name, device="cuda")
    single = answers(layer, x.cuda(), moved(tokens))
    low = answers(layer, x.cuda(), moved(tokens), autocast=True)
    errors = [difference(found, exact) for found in (single, low)]
    print(f"{name}: float32 {errors[0]:.1e}, bfloat16 {errors[1]:.1e} of float64")
    assert errors[0] < 1e-2 and errors[1] < 0.2


@pytest.mark.parametrize("name", PEERS)
def test_a_layer_that_is_built_on_a_cpu_and_moved_computes_the_same(name):
    x, tokens = sequence()
    layers = built(name, device="cuda"), built(name).cuda()
    there, brought = (answers(layer, x.cuda(), moved(tokens)) for layer in layers)
    assert difference(brought, there) < 1e-5


@pytest.mark.parametrize("name", ["gated-deltanet-2", "gla", "kda", "rwkv7"])
def test_rows_that_are_computed_apart_and_again_are_the_same(name, monkeypatch):
    x, tokens = sequence()
    layer = built(name, device="cuda")
    expected = answers(layer, x.cuda(), moved(tokens))
    monkeypatch.setattr("muse_peers.recurrence.KEPT", 0)
    monkeypatch.setattr("muse_peers.recurrence.AT_ONCE", 1)
    assert difference(answers(layer, x.cuda(), moved(tokens)), expected) < 1e-5


@pytest.mark.parametrize("name", ["gated-deltanet-2", "gla", "kda", "rwkv7"])
def test_scores_are_computed_by_triton_on_a_gpu_and_by_torch_the_same(name):
    x, tokens = sequence()
    layer = built(name, device="cuda")
    bound = layer.recurrence.keywords["scores"]
    assert bound.function.func is import_module("muse_kernels.triton").decayed_scores
    expected = answers(layer, x.cuda(), moved(tokens))
    layer.recurrence = partial(recurrence, scores=import_module("muse_kernels.torch").decayed_scores)
    assert difference(answers(layer, x.cuda(), moved(tokens)), expected) < 1e-4


@pytest.mark.skipif(missing() is not None, reason=missing() or "")
@pytest.mark.parametrize("name", ["gla", "kda", "rwkv7"])
def test_kernels_of_fla_agree(name):
    x, tokens = sequence()
    layer = built(name, device="cuda")
    expected = answers(layer, x.cuda(), moved(tokens), autocast=True)
    assert layer.recurrence.func is recurrence
    layer.recurrence = channel_decay_kernel(name, "fla")
    found = answers(layer, x.cuda(), moved(tokens), autocast=True)
    error = difference(found, expected)
    print(f"{name}: fla-core's kernel {error:.1e} of ours in bfloat16")
    assert 0 < error < 0.1, "equal bits would mean that ours computed"
