"""The Triton kernels against the formulas by torch: on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from muse_scattering_router import fused_routing
from muse_scattering_router.dispatch import sort
from muse_scattering_router.load import weigh
from torch import Tensor
from torch.nn import functional as F

from muse_core.contracts import Routing, Tokens
from muse_core.testing import build_component

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not INTERPRETED, reason="needs a GPU, or TRITON_INTERPRET=1"
)
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


def choices(tokens: int, experts: int, slots: int, *, ragged: bool) -> Tensor:
    """(T, K) of different experts, the last of them never; some slots unused."""
    expert = torch.rand(tokens, max(experts - 1, slots)).topk(slots).indices
    if ragged:
        expert = expert.masked_fill(torch.rand(tokens, slots) < 0.4, -1)
    return expert.to(DEVICE)


of_grouped_products = pytest.mark.skipif(
    not hasattr(F, "grouped_mm"), reason="torch has grouped_mm from 2.10 on; before it nothing of this is chosen"
)


@pytest.mark.parametrize(
    ("tokens", "experts", "slots", "ragged"),
    [(300, 8, 2, False), (300, 8, 2, True), (70, 5, 3, True), (9, 1, 1, False), (40, 200, 8, True)],
)
def test_losses_measures_and_order(tokens: int, experts: int, slots: int, ragged: bool) -> None:
    expert = choices(tokens, experts, slots, ragged=ragged)
    logits = torch.randn(tokens, experts, device=DEVICE, requires_grad=True)
    valid = torch.rand(tokens, device=DEVICE) < 0.8 if ragged else None
    wanted = expert if valid is None else expert.masked_fill(~valid[:, None], -1)
    found = fused_routing.weigh(logits, wanted, valid, balance=0.5, z_loss=0.25)
    rows = Tokens(torch.arange(tokens, device=DEVICE)[None], valid=None if valid is None else valid[None])
    routing = Routing(expert[None], torch.ones_like(expert[None]), logits[None], {}, {})
    losses, metrics = weigh(wanted[None], wanted[None], routing, rows, balance=0.5, z_loss=0.25)
    torch.testing.assert_close(found.balance, losses["balance"])
    torch.testing.assert_close(found.z, losses["z"])
    torch.testing.assert_close(found.statistics, torch.stack([value.float() for value in metrics.values()]))
    upstream = [torch.tensor(1.5, device=DEVICE), torch.tensor(-0.5, device=DEVICE)]
    gradients = [
        torch.autograd.grad(pair, logits, upstream)[0]
        for pair in ([found.balance, found.z], [losses["balance"], losses["z"]])
    ]
    torch.testing.assert_close(*gradients)
    order = sort(wanted, experts, every_slot=False)
    assert torch.equal(found.ends, order.ends)
    assert torch.equal(found.row, order.row.view(tokens, slots).masked_fill(wanted < 0, -1).int())


@contextmanager
def fused(layer: Any) -> Iterator[None]:
    """The layer by its kernels wherever it is."""
    layer.fuses = lambda x, routing: True
    yield
    del layer.fuses


@of_grouped_products
@pytest.mark.parametrize("router", ["mlp", {"use": "scattering", "top_k": 1, "resonant_top_k": 3, "resonance": 0.5}])
def test_the_layer_and_its_gradients(router: Any) -> None:
    """In fp32 where grouped products take it, against the layer by parts in float64."""
    signals = {"phase": (4,), "theta": (4, 2)}
    layer = build_component("layer", "experts", {"router": router, "experts": 5}, width=40, signals=signals).to(DEVICE)
    tokens = Tokens(torch.arange(30, device=DEVICE).expand(2, -1))
    tokens = tokens._replace(valid=tokens.positions < torch.tensor([[30], [21]], device=DEVICE))
    given = {"phase": torch.randn(2, 30, 4, device=DEVICE) / 4, "theta": torch.randn(2, 30, 4, 2, device=DEVICE)}
    x = torch.randn(2, 30, 40, device=DEVICE)
    upstream = torch.randn_like(x)
    results = []
    with torch.autocast(DEVICE, enabled=False):
        for kind in ("fused", "exact"):
            one = layer if kind == "fused" else layer.double()
            dtype = torch.float32 if kind == "fused" else torch.float64
            inputs = [x.to(dtype).requires_grad_(), given["phase"].to(dtype).requires_grad_()]
            signals_now = {"phase": inputs[1], "theta": given["theta"].to(dtype)}
            if kind == "fused":
                with fused(one):
                    step = one(inputs[0], None, signals_now, tokens)
            else:
                step = one(inputs[0], None, signals_now, tokens)
            loss = (step.update * upstream).sum() + sum(step.losses.values())
            gradients = torch.autograd.grad(loss, [*inputs, *one.parameters()], allow_unused=True)
            results.append([step.update, *step.losses.values(), *step.metrics.values(), *gradients])
    for low, exact in zip(*results, strict=True):
        assert (low is None) == (exact is None)
        if low is not None:
            torch.testing.assert_close(low.double(), exact.double(), rtol=1e-4, atol=1e-5)


@of_grouped_products
def test_products_are_in_the_precision_of_the_run() -> None:
    layer = build_component("layer", "experts", {"router": "mlp", "experts": 4}, width=16).to(DEVICE)
    x, tokens = torch.randn(1, 24, 16, device=DEVICE), Tokens(torch.arange(24, device=DEVICE)[None])
    upstream = torch.randn_like(x)
    exact = layer(x, None, {}, tokens).update
    with torch.autocast(DEVICE, dtype=torch.bfloat16), fused(layer):
        found = layer(x, None, {}, tokens).update
    assert found.dtype == torch.bfloat16
    weights = [*layer.input, *layer.output, layer.router.score.weight]
    results = [[y, *torch.autograd.grad((y * upstream).sum(), weights)] for y in (found, exact)]
    for low, due in zip(*results, strict=True):
        assert 1e-4 < (low - due).abs().max() / due.abs().max() < 0.03


def test_rows_beyond_the_last_end_are_left_alone() -> None:
    from muse_scattering_router.fused import weighted_swiglu, weighted_swiglu_backward

    hidden, scale = torch.randn(7, 3000, device=DEVICE, requires_grad=True), torch.rand(7, device=DEVICE)
    ends = torch.tensor([2, 5], dtype=torch.int32, device=DEVICE)
    scale.requires_grad_()
    value, gate = hidden.chunk(2, -1)
    due = F.silu(gate) * value * scale[:, None]
    torch.testing.assert_close(weighted_swiglu(hidden.detach(), scale.detach(), ends)[:5], due[:5])
    upstream = torch.randn_like(due)
    gradients = torch.autograd.grad(due, [hidden, scale], upstream)
    found = weighted_swiglu_backward(hidden.detach(), scale.detach(), upstream, ends)
    for one, other in zip([*found, upstream], [*gradients, due], strict=True):
        torch.testing.assert_close(one[:5], other[:5], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("heads", "channels"), [(8, 4), (11, 4), (3, 3), (5, 1)])
def test_features_of_the_scattering_router(heads: int, channels: int) -> None:
    shapes = {"phase": (heads,), "theta": (heads, 2)}
    options = {"channels": channels, "top_k": 1, "resonant_top_k": 3, "resonance": 0.5}
    router = build_component("router", "scattering", options, experts=8, signals=shapes).to(DEVICE).train()
    router.scale.values += 0.1 * torch.rand_like(router.scale.values)
    tokens = Tokens(torch.arange(90, device=DEVICE).expand(2, -1))
    phase = torch.randn(2, 90, heads, device=DEVICE, requires_grad=True)
    theta = torch.randn(2, 90, heads, 2, device=DEVICE)
    theta[0, 0] = 0.0
    theta.requires_grad_()
    for valid in (None, tokens.positions < torch.tensor([[90], [21]], device=DEVICE)):
        results = []
        for read in (router.read, router.read_fused):
            found = read({"phase": phase, "theta": theta}, tokens._replace(valid=valid), torch.float32)
            gradients = torch.autograd.grad(found.entries, [phase, theta], torch.cos(found.entries.detach()))
            results.append([found.entries, found.modulus, *found.metrics.values(), *gradients])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
