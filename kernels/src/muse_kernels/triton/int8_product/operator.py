"""The product of rows with a matrix of 8-bit integers, forward alone."""

import torch
from torch import Tensor

from .kernels import one_row_kernel, rows_kernel

MOST_ROWS = 64
"""Rows of x up to which reading half the bytes is worth more than the vendor's product of whole tiles."""
AT_ONCE = 4096
"""Products that a program of one row holds: 32 registers a thread."""
PROGRAMS = 256
"""About two for each processor of a data-centre GPU: fewer outputs a program where there are few outputs."""


def int8_product(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """x (..., K) times the transpose of a matrix whose row r is scale[r] · values[r].

    Args:
        x: bfloat16, float16 or, for one row alone, float32.
        values: (R, K) int8, contiguous.
        scale: (R,), any floating dtype.

    Returns (..., R) in x's dtype; products are exact and summed in float32. It has no gradient. ValueError names what
    does not fit.
    """
    rows = x.numel() // max(x.shape[-1], 1)
    if values.dtype != torch.int8 or values.ndim != 2 or not values.is_contiguous():
        raise ValueError(f"int8_product: values must be a contiguous int8 matrix, got {values.dtype} "
                         f"{tuple(values.shape)}")
    if x.shape[-1] != values.shape[1] or scale.shape != values.shape[:1]:
        raise ValueError(f"int8_product: x {tuple(x.shape)}, values {tuple(values.shape)} and scale "
                         f"{tuple(scale.shape)} do not fit: (..., K), (R, K) and (R,)")
    if x.dtype not in (torch.bfloat16, torch.float16) and (x.dtype != torch.float32 or rows > 1):
        raise ValueError(f"int8_product: x must be bfloat16 or float16, one row may be float32; got {x.dtype}")
    return _product(x, values, scale)


@torch.library.custom_op("muse_kernels::int8_product", mutates_args=())
def _product(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    (outputs, inputs), output = values.shape, x.new_empty((*x.shape[:-1], values.shape[0]))
    rows = output.numel() // max(outputs, 1)
    if not output.numel():
        return output
    x, scale = x.contiguous(), scale.contiguous()
    with torch.cuda.device_of(x):
        if rows == 1:
            columns = min(power_of_two(inputs), 1024)
            together = min(16, AT_ONCE // columns, power_of_two(-(-outputs // PROGRAMS)))
            one_row_kernel[(-(-outputs // together),)](
                x, values, scale, output, outputs, inputs, R=together, K=columns, num_warps=4
            )
        else:
            block = min(MOST_ROWS, max(16, power_of_two(rows)))
            wide = 16 if outputs <= 16 * PROGRAMS else 32
            rows_kernel[(-(-outputs // wide), -(-rows // block))](
                x, values, scale, output, rows, outputs, inputs, M=block, R=wide, K=128, num_warps=4, num_stages=4
            )
    return output


@_product.register_fake
def _(x, values, scale):
    return x.new_empty((*x.shape[:-1], values.shape[0]))


def power_of_two(number: int) -> int:
    """The least that is not below it."""
    return 1 << max(number - 1, 0).bit_length()
