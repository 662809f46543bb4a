"""The product of one row with a matrix of 8-bit integers, forward alone, and what stands before and after it.

Of several rows the vendor's product with a bf16 copy is faster: with tiles that unpack integers a token of 64 rows took
1.1 to 1.5 times as long as with it, in models of 10 to 881 million entries on an H200.
"""

import torch
import triton.language as tl
from torch import Tensor

from .kernels import one_row_kernel

AT_ONCE = 4096
"""Products that a program holds: 32 registers a thread."""
PROGRAMS = 256
"""About two for each processor of a data-centre GPU: fewer outputs a program where there are few outputs."""
DTYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


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
    if x.dtype not in DTYPES:
        raise ValueError(f"int8_product: x must be bfloat16, float16 or float32, got {x.dtype}")
    return _product(x, values, scale)


@torch.library.custom_op("muse_kernels::int8_product", mutates_args=())
def _product(x: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    return _launched(x, values, scale, x.new_empty((*x.shape[:-1], values.shape[0])), x.dtype)


@_product.register_fake
def _(x, values, scale):
    return x.new_empty((*x.shape[:-1], values.shape[0]))


@torch.library.custom_op("muse_kernels::int8_product_between", mutates_args=())
def _between(
    x: Tensor, values: Tensor, scale: Tensor, dtype: torch.dtype, gate: Tensor | None, weight: Tensor | None,
    eps: float, stream: Tensor | None,
) -> Tensor:  # fmt: skip
    """``int8_product`` with what torch would do in kernels of its own, in this order and rounded alike:

    - with ``weight`` (K,): x becomes its RMS norm, x / √(mean x² + eps) · weight;
    - x is converted to ``dtype``, that of the product;
    - with ``gate`` as x, in ``dtype``: x becomes silu(gate) · x;
    - with ``stream`` (..., R): the product is added to it, in its dtype.

    Arguments are not checked: ``muse_koopman.recorded`` writes the calls, of operations that torch has checked.
    """
    output = x.new_empty((*x.shape[:-1], values.shape[0]), dtype=dtype if stream is None else stream.dtype)
    return _launched(x, values, scale, output, dtype, gate, weight, eps, stream)


@_between.register_fake
def _(x, values, scale, dtype, gate, weight, eps, stream):
    return x.new_empty((*x.shape[:-1], values.shape[0]), dtype=dtype if stream is None else stream.dtype)


def _launched(
    x: Tensor, values: Tensor, scale: Tensor, output: Tensor, dtype: torch.dtype, gate: Tensor | None = None,
    weight: Tensor | None = None, eps: float = 0.0, stream: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """``output``, written. What is not given is handed over as x and not read."""
    outputs, inputs = values.shape
    columns = min(power_of_two(inputs), 1024)
    together = min(16, AT_ONCE // columns, power_of_two(-(-outputs // PROGRAMS)))
    x = x.contiguous()
    gate, weight, stream = (None if one is None else one.contiguous() for one in (gate, weight, stream))
    with torch.cuda.device_of(x):
        one_row_kernel[(-(-outputs // together),)](
            x, x if gate is None else gate, x if weight is None else weight, eps, values, scale.contiguous(),
            x if stream is None else stream, output, outputs, inputs, R=together, K=columns, GATE=gate is not None,
            NORM=weight is not None, ADD=stream is not None, DTYPE=DTYPES[dtype], num_warps=4,
        )  # fmt: skip
    return output


def power_of_two(number: int) -> int:
    """The least that is not below it."""
    return 1 << max(number - 1, 0).bit_length()
