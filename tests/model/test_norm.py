"""The stream's norm on a CPU: a kernel where gradients are wanted, torch's own otherwise; the same function."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muse_core.model.kernels import BoundKernels
from muse_core.model.stack import RMSNorm, make_norm
from muse_core.testing.building import bound_kernels


@pytest.mark.parametrize("shape", [(2, 5, 24), (2, 0, 24)])
def test_the_norm_and_its_gradients_are_torchs(shape: tuple[int, ...]) -> None:
    norm = make_norm("rms", 24, bound_kernels("float64")).double()
    torch.manual_seed(0)
    torch.nn.init.normal_(norm.weight)
    x, gradient = torch.randn(shape, dtype=torch.float64, requires_grad=True), torch.randn(shape, dtype=torch.float64)
    leaves = (x, norm.weight)
    outputs = [norm(x), F.rms_norm(x, (24,), norm.weight, 1e-6)]
    own, torchs = ([y, *torch.autograd.grad(y, leaves, gradient)] for y in outputs)
    for one, other in zip(own, torchs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_kernel_serves_where_gradients_are_wanted_and_on_a_cpu() -> None:
    asked: list[float] = []
    norm = RMSNorm(8, lambda x, weight, gate, epsilon: asked.append(epsilon) or x * weight)
    x = torch.randn(3, 8)
    norm(x)
    with torch.no_grad():
        norm(x)
    assert asked == [1e-6]
    assert type(make_norm("rms", 8)) is torch.nn.RMSNorm
    assert type(make_norm("rms", 8, BoundKernels((), device="cuda", dtype="float32"))) is torch.nn.RMSNorm
