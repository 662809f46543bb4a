"""The first call of torch's vector functions on the processor, made by one thread alone.

torch computes exp, log, sqrt and others of contiguous float32 and float64 tensors by oneMKL's vector mathematics. The
oneMKL 2024.2 of torch 2.13.0's wheels chooses its code for the processor within the first call of the process, and not
safely between threads: one thread's share of that call can come from code of low accuracy (pytorch issue 188792). What
was measured is in docs/decisions/first-calls.md.
"""

from __future__ import annotations

import threading

import torch

FUNCTIONS = (
    "acos", "asin", "atan", "cos", "erf", "erfc", "erfinv", "exp", "log", "log10", "log2", "sin", "sqrt", "tan", "tanh",
    "trunc",
)
"""Names in ``torch`` of what oneMKL computes: IMPLEMENT_VML_MKL in torch's ATen/cpu/vml.h."""
DTYPES = (torch.float32, torch.float64)
"""oneMKL computes no others."""

_lock = threading.Lock()
_called = False


def call_vector_functions_once() -> None:
    """Call every vector function in either dtype on one element, which no two threads can share; the next calls of the
    process do nothing. Draws no random numbers and changes no setting."""
    global _called
    if _called:
        return
    with _lock:
        if _called:
            return
        for dtype in DTYPES:
            one = torch.full((1,), 0.5, dtype=dtype, device="cpu")
            for name in FUNCTIONS:
                getattr(torch, name)(one)
        _called = True
