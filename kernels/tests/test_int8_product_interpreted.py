"""The product with 8-bit integers against float64, in Triton's interpreter and, where there is one, on a GPU."""

import os

import pytest
import torch

from muse_kernels.refusals import refuse_triton
from muse_kernels.request import KernelRequest

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
REQUEST = KernelRequest("int8_product", DEVICE, "float32", {})
pytestmark = pytest.mark.skipif(refuse_triton(REQUEST) is not None, reason=str(refuse_triton(REQUEST)))
TOLERANCE = {torch.bfloat16: 8e-3, torch.float16: 1e-3, torch.float32: 1e-5}


def drawn(rows: tuple[int, ...], outputs: int, inputs: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(*rows, inputs, generator=random).to(dtype)
    values = torch.randint(-127, 128, (outputs, inputs), generator=random, dtype=torch.int8)
    scale = torch.rand(outputs, generator=random) / 127 + 1e-3
    return tuple(tensor.to(DEVICE) for tensor in (x, values, scale))


def distance(x: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> float:
    from muse_kernels.triton.int8_product import int8_product

    found = int8_product(x, values, scale)
    due = x.double() @ (values.double() * scale.double()[:, None]).T
    assert found.dtype == x.dtype and found.shape == due.shape
    return float((found.double() - due).norm() / due.norm())


@pytest.mark.parametrize("outputs, inputs", [(1, 1), (5, 7), (64, 384), (33, 1500), (300, 130), (70, 1100)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_dense_product(dtype, outputs, inputs):
    assert distance(*drawn((1,), outputs, inputs, dtype)) < TOLERANCE[dtype]


@pytest.mark.parametrize("rows", [(), (1, 1)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rows_of_any_number_of_axes(dtype, rows):
    assert distance(*drawn(rows, 33, 40, dtype)) < TOLERANCE[dtype]


def test_a_row_that_lies_apart():
    from muse_kernels.triton.int8_product import int8_product

    x, values, scale = drawn((1,), 9, 24, torch.float16)
    apart = torch.stack((x, x), dim=-1)[..., 1]
    assert torch.equal(int8_product(apart, values, scale), int8_product(x, values, scale))


PARTS = ("norm", "gate", "stream", "norm stream", "gate stream", "")
SMALL = [(parts, dtype, 5, 7) for parts in PARTS for dtype in TOLERANCE]
SEVERAL_TILES = [(parts, dtype, 70, 1100) for parts, dtype in zip(PARTS, [*TOLERANCE] * 2, strict=True)]


@pytest.mark.parametrize("parts, dtype, outputs, inputs", SMALL + SEVERAL_TILES)
def test_what_stands_around_a_product(parts, dtype, outputs, inputs):
    from muse_kernels.triton.int8_product import int8_product  # which defines the other

    x, values, scale = drawn((1, 1), outputs, inputs, torch.float32)
    random = torch.Generator().manual_seed(1)
    others = {name: torch.randn(number, generator=random).to(DEVICE)
              for name, number in (("weight", inputs), ("gate", inputs), ("stream", outputs))}
    weight = others["weight"] if "norm" in parts else None
    gate = others["gate"].to(dtype)[None, None] if "gate" in parts else None
    stream = others["stream"][None, None] if "stream" in parts else None
    low = x.to(dtype) if gate is not None else x
    found = torch.ops.muse_kernels.int8_product_between(low, values, scale, dtype, gate, weight, 1e-2, stream)
    u = low.double()
    if weight is not None:
        u = torch.nn.functional.rms_norm(u, [inputs], weight.double(), 1e-2)
    if gate is not None:
        u = u * torch.nn.functional.silu(gate.double())
    due = u @ (values.double() * scale.double()[:, None]).T + (0 if stream is None else stream)
    assert found.dtype == (dtype if stream is None else torch.float32) and found.shape == due.shape
    assert (found.double() - due).norm() < 2 * TOLERANCE[dtype] * due.norm()
    if not parts and dtype == torch.float32:
        assert torch.equal(found, int8_product(x, values, scale))


@pytest.mark.parametrize("change", ["columns", "rows", "scale", "dtype", "values"])
def test_what_does_not_fit_is_said(change):
    from muse_kernels.triton.int8_product import int8_product

    x, values, scale = drawn((1,), 9, 24, torch.float16)
    given = {
        "columns": (x[:, 1:], values, scale), "rows": (x.expand(2, -1), values, scale),
        "scale": (x, values, scale[1:]), "dtype": (x.double(), values, scale),
        "values": (x, values.T, scale),
    }[change]  # fmt: skip
    with pytest.raises(ValueError, match="int8_product"):
        int8_product(*given)


@pytest.mark.skipif(not CUDA, reason="there is no GPU")
def test_wide_matrices_on_a_gpu():
    assert distance(*drawn((1,), 8192, 4096, torch.bfloat16)) < TOLERANCE[torch.bfloat16]


if not CUDA and os.environ.get("TRITON_INTERPRET") == "1":

    def test_every_number_is_written(monkeypatch):
        """Memory that nobody wrote would show."""
        from muse_kernels.triton.int8_product import int8_product

        x, values, scale = drawn((1,), 37, 40, torch.float16)
        made = torch.Tensor.new_empty

        def poisoned(*given, **named):
            tensor = made(*given, **named)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
        assert not int8_product(x, values, scale).isnan().any()
