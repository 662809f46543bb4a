"""Trace attention against torch's flash attention.

65,536 tokens in sequences of 2,048 to 16,384, 2,048 channels in heads of 64 and 128, bfloat16, causal; medians of
device time, caches flushed between repeats.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..triton import trace_attention
from .fast_weights import median

TOKENS, CHANNELS = 65_536, 2048
LENGTHS, WIDTHS = (2048, 4096, 8192, 16_384), (64, 128)


class Row(NamedTuple):
    """Microseconds of one size, ours and torch's flash attention."""

    width: int
    length: int
    forward: float
    flash_forward: float
    backward: float
    flash_backward: float


def draw(length: int, width: int) -> list[Tensor]:
    """Query, key and value (B, N, H, K) and a bound under which most rows are scaled."""
    random = torch.Generator("cuda").manual_seed(0)
    shape = (TOKENS // length, length, CHANNELS // width, width)
    tensors = [torch.randn(shape, device="cuda", generator=random).bfloat16() for _ in range(3)]
    return [x.requires_grad_() for x in (*tensors, torch.full(shape[:3], 3.0, device="cuda"))]


def ours(query: Tensor, key: Tensor, value: Tensor, bound: Tensor) -> Tensor:
    """The output of the operation."""
    return trace_attention(query, key, value, bound)[0].output


def flash(query: Tensor, key: Tensor, value: Tensor, bound: Tensor) -> Tensor:
    """Plain attention of the same tensors, by torch's flash kernel."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        found = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value)), is_causal=True)
    return found.transpose(1, 2)


def _times(call: Callable[..., Tensor], leaves: list[Tensor], repeats: int) -> tuple[float, float]:
    """Microseconds of the forward pass without gradients and of the backward pass alone."""
    with torch.no_grad():
        forward = median(lambda: call(*leaves), repeats)
    output, given = call(*leaves), leaves if call is ours else leaves[:3]
    gradient = torch.randn(output.shape, device="cuda").bfloat16()
    return forward, median(lambda: torch.autograd.grad(output, given, gradient, retain_graph=True), repeats)


def measure(repeats: int = 20) -> Iterator[Row]:
    """Rows as they are measured, both side by side."""
    for width in WIDTHS:
        for length in LENGTHS:
            leaves = draw(length, width)
            (forward, backward), (flash_forward, flash_backward) = (
                _times(call, leaves, repeats) for call in (ours, flash)
            )
            yield Row(width, length, forward, flash_forward, backward, flash_backward)
