"""The Triton kernels against the formulas: on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

from __future__ import annotations

import os

import pytest
import torch
from torch.nn import functional as F

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() and not INTERPRETED, reason="needs a GPU, or TRITON_INTERPRET=1"
)
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"


@pytest.mark.parametrize("rows, units", [(7, 24), (5, 1500), (0, 8)])
def test_weighted_swiglu_and_its_gradient(rows: int, units: int) -> None:
    from muse_scattering_router.fused import weighted_swiglu

    hidden = torch.randn(rows, 2 * units, device=DEVICE, requires_grad=True)
    weight = torch.rand(rows, device=DEVICE, requires_grad=True)
    value, gate = hidden.chunk(2, -1)
    results = [weighted_swiglu(hidden, weight), F.silu(gate) * value * weight[:, None]]
    upstream = torch.randn_like(results[0])
    for found, due in zip(*[[y, *torch.autograd.grad(y, [hidden, weight], upstream)] for y in results]):
        torch.testing.assert_close(found, due, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ragged", [False, True])
def test_sums_over_used_slots_only(ragged: bool) -> None:
    from muse_scattering_router.fused import summed

    rows = torch.randn(12, 1100, device=DEVICE)
    row = torch.randperm(12, device=DEVICE).view(4, 3)
    used = torch.rand(4, 3, device=DEVICE) < 0.5 if ragged else None
    kept = rows[row]
    if used is not None:
        rows[row[~used]] = torch.nan
        kept = kept.masked_fill(~used[..., None], 0.0)
    torch.testing.assert_close(summed(rows, row, used), kept.sum(1))
