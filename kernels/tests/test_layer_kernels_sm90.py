"""What the kernels around fast weights and the applied resolvent become on Hopper, at width 512 in bfloat16,
and those of the product with int8."""

import importlib
import os

import pytest
import torch

sm90 = pytest.importorskip("muse_kernels.testing.sm90")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# By Triton 3.7.1: registers as found, instructions with a tenth to spare. None spills, but for SPILLED.
CEILINGS = {
    "gated_norm_kernel": (120, 800),
    "gated_norm_backward_kernel": (61, 415),
    "short_convolution_kernel": (56, 1100),
    "short_convolution_backward_kernel": (128, 4360),
    "one_row_kernel": (72, 352),
}
SPILLED = {"short_convolution_backward_kernel": 280}
"""Bytes of a thread's stack, of a kernel that is held to fewer registers than it would take."""
BETWEEN = (72, 800)
"""Of one_row_kernel with all that may stand around a product."""


def recorded(patch, module: str, launches) -> dict:
    """Every kernel of the module, as `launches` would run them on tensors that hold no memory."""
    place = importlib.import_module(module)
    recorders = {name: sm90.Recorder(getattr(place, name)) for name in CEILINGS if hasattr(place, name)}
    for name, recorder in recorders.items():
        patch.setattr(place, name, recorder)
    with torch.device("meta"):
        launches(place)
    return recorders


def norms(place) -> None:
    x, gate = torch.empty(8, 2048, 512, dtype=torch.complex64), torch.empty(8, 2048, 512, dtype=torch.bfloat16)
    gradient = torch.empty(8, 2048, 1152, dtype=torch.bfloat16)[..., :1024]
    place._forward._init_fn(x, torch.empty(1024), gate, torch.empty(8, 2048, 128, dtype=gate.dtype), 1e-6)
    place._backward._init_fn(gradient, x, torch.empty(1024), gate, 1e-6)


def convolutions(place) -> None:
    x, taps = torch.empty(8, 2048, 1536, dtype=torch.bfloat16), torch.empty(4, 1536)
    resets = torch.empty(8, 2048, dtype=torch.bool)
    parts = place._forward._init_fn(x, taps, None, resets, 8, 64)
    place._backward._init_fn(*parts, x, taps, None, resets, 8, 64)


def convolutions_alone(place) -> None:
    x, taps = torch.empty(8, 2048, 384, dtype=torch.bfloat16), torch.empty(4, 384)
    resets = torch.empty(8, 2048, dtype=torch.bool)
    parts = place._forward._init_fn(x, taps, None, resets, 0, 64)
    place._backward._init_fn(*parts, x, taps, None, resets, 0, 64)


def integers(place) -> None:
    values = torch.empty(8192, 2048, dtype=torch.int8)
    place._product._init_fn(torch.empty(1, 2048, dtype=torch.bfloat16), values, torch.empty(8192))


def integers_between(place) -> None:
    values = torch.empty(8192, 2048, dtype=torch.int8)
    x, gate, weight = torch.empty(1, 2048), torch.empty(1, 2048, dtype=torch.bfloat16), torch.empty(2048)
    others = (gate, weight, 1e-6, torch.empty(1, 8192))
    place._between._init_fn(x, values, torch.empty(8192), torch.bfloat16, *others)


def many_rows(place) -> None:
    for batch, tokens in ((70_000, 2), (1, 4_000_000), (8, 1)):
        x, taps, initial = torch.empty(batch, tokens, 24), torch.empty(4, 24), torch.empty(batch, 3, 24)
        parts = place._forward._init_fn(x, taps, initial, None, 2, 4)
        place._backward._init_fn(*parts, x, taps, initial, None, 2, 4)
        place._backward._init_fn(*place._forward._init_fn(x, taps, initial, None, 0, 64), x, taps, initial, None, 0, 64)


MODULES = [
    ("muse_kernels.triton.gated_norm.operator", norms),
    ("muse_kernels.triton.short_convolution.operator", convolutions),
    ("muse_kernels.triton.short_convolution.operator", convolutions_alone),
    ("muse_kernels.triton.int8_product.operator", integers),
    ("muse_kernels.triton.int8_product.operator", integers_between),
]


def test_any_number_of_rows_and_tokens(monkeypatch):
    """All axes of a grid but the first end at 65,535."""
    for name, recorder in recorded(monkeypatch, "muse_kernels.triton.short_convolution.operator", many_rows).items():
        assert all(axis <= 65_535 for grid in recorder.grids for axis in grid[1:]), (name, recorder.grids)
        recorder.compile()  # of one token, a constant


@pytest.mark.parametrize("module, launches", MODULES)
def test_ceilings(monkeypatch, module, launches):
    for name, recorder in recorded(monkeypatch, module, launches).items():
        found = recorder.compile()
        if not sm90.COUNTS_HOLD:
            continue
        registers, instructions = BETWEEN if launches is integers_between else CEILINGS[name]
        assert found.stack <= SPILLED.get(name, 0) and found.registers <= registers, f"{name}: {found}"
        assert instructions / 3 <= found.instructions <= instructions, f"{name}: {found}"
