"""The product of one row with a matrix of 8-bit integers, forward alone.

Of several rows the vendor's product with a bf16 copy is faster: with tiles that unpack integers a token of 64 rows took
1.1 to 1.5 times as long as with it, in models of 10 to 881 million entries on an H200.
"""

import torch
from torch import Tensor

from .kernels import one_row_kernel

AT_ONCE = 4096
"""Products that a program holds: 32 registers a thread."""
PROGRAMS = 256
"""About two for each processor of a data-centre GPU: fewer outputs a program where there are few outputs."""


def int8_product(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """x (..., K), one row, times the transpose of a matrix whose row r is scale[r] · values[r].

    Args:
        x: bfloat16, float16 or float32, of K numbers.
        values: (R, K) int8, contiguous.
        scale: (R,), any floating dtype.

    Returns (..., R) in x's dtype; products are exact and summed in float32. It has no gradient. ValueError names what
    does not fit.
    """
    if values.dtype != torch.int8 or values.ndim != 2 or not values.is_contiguous():
        raise ValueError(f"int8_product: values must be a contiguous int8 matrix, got {values.dtype} "
                         f"{tuple(values.shape)}")
    if x.shape[-1] != values.shape[1] or scale.shape != values.shape[:1]:
        raise ValueError(f"int8_product: x {tuple(x.shape)}, values {tuple(values.shape)} and scale "
                         f"{tuple(scale.shape)} do not fit: (..., K), (R, K) and (R,)")
    if x.numel() != values.shape[1]:
        raise ValueError(f"int8_product: one row at a time, got {tuple(x.shape)}")
    if x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        raise ValueError(f"int8_product: x must be bfloat16, float16 or float32, got {x.dtype}")
    return _product(x, values, scale)


@torch.library.custom_op("muse_kernels::int8_product", mutates_args=())
def _product(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    (outputs, inputs), output = values.shape, x.new_empty((*x.shape[:-1], values.shape[0]))
    columns = min(power_of_two(inputs), 1024)
    together = min(16, AT_ONCE // columns, power_of_two(-(-outputs // PROGRAMS)))
    with torch.cuda.device_of(x):
        one_row_kernel[(-(-outputs // together),)](
            x.contiguous(), values, scale.contiguous(), output, outputs, inputs, R=together, K=columns, num_warps=4
        )
    return output


@_product.register_fake
def _(x, values, scale):
    return x.new_empty((*x.shape[:-1], values.shape[0]))


def power_of_two(number: int) -> int:
    """The least that is not below it."""
    return 1 << max(number - 1, 0).bit_length()
