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
@pytest.mark.parametrize("rows", [(), (1,), (1, 1)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_dense_product(dtype, rows, outputs, inputs):
    assert distance(*drawn(rows, outputs, inputs, dtype)) < TOLERANCE[dtype]


def test_a_row_that_lies_apart():
    from muse_kernels.triton.int8_product import int8_product

    x, values, scale = drawn((1,), 9, 24, torch.float16)
    apart = torch.stack((x, x), dim=-1)[..., 1]
    assert torch.equal(int8_product(apart, values, scale), int8_product(x, values, scale))


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
