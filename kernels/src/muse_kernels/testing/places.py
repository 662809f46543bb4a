"""Where a test of an operation runs: torch and native in float64, the Triton kernels wherever they can run."""

import os
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch import Tensor

from muse_kernels.refusals import NATIVE


def functions(operation: str) -> list:
    """Parameters (function, dtype, device, tolerance), to be given to `pytest.mark.parametrize`."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    usable = interpreted or torch.cuda.is_available()
    here = "cpu" if interpreted else "cuda"
    skip = pytest.mark.skipif(not usable, reason="needs a CUDA device or TRITON_INTERPRET=1")

    def by_triton(*arguments, **options):
        return getattr(import_module("muse_kernels.triton"), operation)(*arguments, **options)

    by_torch = getattr(import_module("muse_kernels.torch"), operation)
    found = [pytest.param((by_torch, torch.float64, "cpu", 1e-11), id="torch")]
    if operation in NATIVE:
        by_native = getattr(import_module("muse_kernels.native"), operation)
        found.append(pytest.param((by_native, torch.float64, "cpu", 1e-11), id="native"))
    return [*found, pytest.param((by_triton, torch.float32, here, 5e-6), id="triton", marks=skip)]


def results(
    function: Callable, leaves: list[Tensor | None], dtype: torch.dtype, device: str, **options
) -> list[Tensor]:
    """Every output and the gradient of every leaf, under random cotangents that depend on the shapes only."""
    given = [x if x is None else _cast(x.detach(), dtype).to(device).requires_grad_() for x in leaves]
    options = {name: x.to(device) if isinstance(x, Tensor) else x for name, x in options.items()}
    returned = function(*given, **options)
    outputs = returned if isinstance(returned, tuple) else (returned,)
    random = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=random, dtype=torch.float64).to(device) for x in outputs]
    total = sum((x.double() * w).sum() for x, w in zip(outputs, weights, strict=True))
    return [*outputs, *torch.autograd.grad(total, [x for x in given if x is not None])]


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    pairs = {torch.float64: torch.complex128, torch.float32: torch.complex64}
    return x.to(pairs[dtype] if x.is_complex() else dtype)


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Each within `tolerance` of the largest magnitude expected."""
    for place, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape, place
        error = (a.to(e.device, e.dtype) - e).abs().max() / e.abs().max().clamp(min=1e-3) if e.numel() else 0.0
        assert error <= tolerance, f"result {place}: {error:.1e}"
