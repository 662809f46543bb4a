"""Newton-Schulz steps in C against the steps as they are written, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_kernels.native import newton_schulz

OPTIONS = {"coefficients": (3.4445, -4.775, 2.0315), "steps": 5, "smallest": 1e-7}
SHAPES = [(1, 1), (1, 5), (7, 1), (17, 3), (16, 16), (12, 40), (48, 31), (33, 65), (65, 33), (96, 96), (100, 250)]


def as_written(matrix: Tensor, *, coefficients: tuple[float, float, float], steps: int, smallest: float) -> Tensor:
    a, b, c = coefficients
    x = matrix.double()
    x = x / x.norm().clamp_min(smallest)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def drawn(*shape: int, spread: float = 1e-2, seed: int = 0) -> Tensor:
    """Float64, with singular values over 1 / ``spread``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x * torch.logspace(0, torch.tensor(spread).log10().item(), shape[-1], dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-11), (torch.float32, 2e-4)], ids=str)
def test_it_is_the_steps_as_written(shape: tuple[int, int], dtype: torch.dtype, tolerance: float) -> None:
    x = drawn(3, *shape)
    found = newton_schulz(x.to(dtype), **OPTIONS)
    assert found.dtype == dtype and found.shape == x.shape
    for one, matrix in zip(found, x, strict=True):
        expected = as_written(matrix, **OPTIONS)
        assert (one.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(20, 50), (50, 20), (32, 32)], ids=str)
def test_of_any_number_and_coefficients(steps: int, shape: tuple[int, int]) -> None:
    given = {"coefficients": (1.5, -0.5, 0.01), "steps": steps, "smallest": 1e-7}
    expected = as_written(drawn(*shape), **given)
    assert (newton_schulz(drawn(*shape), **given) - expected).norm() <= 1e-11 * expected.norm()


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e-3, 1e15])
def test_the_size_of_a_matrix_is_nothing_but_that_of_one_without(scale: float) -> None:
    x = (drawn(24, 40) * scale).float()
    expected = as_written(x, **OPTIONS)
    assert (newton_schulz(x, **OPTIONS).double() - expected).norm() <= 2e-4 * expected.norm()
    assert torch.equal(newton_schulz(torch.zeros(2, 3, 5), **OPTIONS), torch.zeros(2, 3, 5))


@pytest.mark.parametrize("shape", [(17, 31), (31, 17)], ids=str)
def test_matrices_do_not_meet_and_threads_change_nothing(shape: tuple[int, int]) -> None:
    x = drawn(200, *shape).float()
    x[3, 2, 1] = torch.nan
    x[5, 0, 0] = torch.inf
    threads = torch.get_num_threads()
    try:
        found = []
        for number in (1, 3):
            torch.set_num_threads(number)
            found.append(newton_schulz(x, **OPTIONS))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*(one.nan_to_num(7.0) for one in found))
    spoilt = {number for number, one in enumerate(found[0]) if not one.isfinite().all()}
    assert spoilt == {3, 5} and found[0][3].isnan().all() and found[0][5].isnan().all()
    for number in (0, 4, 199):
        assert torch.equal(newton_schulz(x[number], **OPTIONS), found[0][number])


def test_what_is_no_contiguous_tensor_is_read_as_it_is() -> None:
    x = drawn(40, 2, 24)
    expected = newton_schulz(x.transpose(0, 1).contiguous(), **OPTIONS)
    assert torch.equal(newton_schulz(x.transpose(0, 1), **OPTIONS), expected)
    assert newton_schulz(torch.zeros(0, 3, 4), **OPTIONS).shape == (0, 3, 4)
    assert newton_schulz(torch.zeros(2, 0, 4), **OPTIONS).shape == (2, 0, 4)


@pytest.mark.parametrize("given,named", [
    (torch.zeros(3), r"matrix must be \(…, rows, columns\) in float32 or float64 on a CPU, got \(3,\)"),
    (torch.zeros(3, 3, dtype=torch.bfloat16), "in torch.bfloat16"),
    (torch.zeros(3, 3, dtype=torch.complex64), "in torch.complex64"),
    (torch.zeros(3, 3, device="meta"), "on meta"),
    (torch.zeros(3, 3, requires_grad=True), "has no gradient; call it under torch.no_grad"),
])
def test_what_it_does_not_serve_is_refused(given: Tensor, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        newton_schulz(given, **OPTIONS)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        newton_schulz(torch.ones(2, 2), **OPTIONS | {"steps": 0})
