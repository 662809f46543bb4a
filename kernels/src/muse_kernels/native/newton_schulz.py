"""Newton-Schulz steps in C: products of symmetric matrices by one triangle, and one product of the matrix itself."""

from __future__ import annotations

import torch
from torch import Tensor

from .calls import call

KINDS = "nnnddddpp"


def newton_schulz(
    matrix: Tensor, *, coefficients: tuple[float, float, float], steps: int, smallest: float
) -> Tensor:
    """X ← (a + b X Xᵀ + c (X Xᵀ)²) X, ``steps`` times, from the matrix over its Frobenius norm: the same singular
    vectors with singular values near 1.

    Args:
        matrix: (…, rows, columns), float32 or float64, on a CPU. Of a tall one the transpose is taken.
        coefficients: a, b and c.
        steps: how many, at least 1.
        smallest: a norm below this counts as this.

    Returns the same shape; NaN and infinite entries make all of their matrix NaN. Rounding is that of products of
    X Xᵀ: in float32 some 1e-4 of the result for singular values over four orders of magnitude, where steps of X
    itself have 1e-5. No gradient. Raises ValueError. Source: Jordan et al., "Muon: an optimizer for hidden layers in
    neural networks", 2024.
    """
    if matrix.ndim < 2 or matrix.dtype not in (torch.float32, torch.float64) or matrix.device.type != "cpu":
        raise ValueError(
            f"newton_schulz: matrix must be (…, rows, columns) in float32 or float64 on a CPU, got "
            f"{tuple(matrix.shape)} in {matrix.dtype} on {matrix.device}"
        )
    if steps < 1:
        raise ValueError(f"newton_schulz: steps must be at least 1, got {steps}")
    if matrix.requires_grad and torch.is_grad_enabled():
        raise ValueError("newton_schulz: has no gradient; call it under torch.no_grad()")
    whole = matrix.resolve_neg().contiguous()
    found = torch.empty_like(whole)
    rows, columns = matrix.shape[-2:]
    if not matrix.numel():
        return found
    a, b, c = coefficients
    arguments = {
        "rows": rows, "columns": columns, "steps": steps, "a": a, "b": b, "c": c, "smallest": smallest, "from": whole,
        "to": found,
    }  # fmt: skip
    call("newton_schulz", KINDS, arguments, matrix.numel() // (rows * columns), matrix.dtype)
    return found
