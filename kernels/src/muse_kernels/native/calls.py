"""Calls of the compiled functions: their arguments as C structures, their rows shared among threads."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

from ..compiled import library

PRECISIONS = {
    torch.float32: "float32", torch.float64: "float64", torch.complex64: "float32", torch.complex128: "float64",
}
LINE = 64
"""Bytes of a line of the cache."""
WORTH_A_THREAD = 1 << 16
"""Numbers that a call reads, below which it does not go to further threads."""


@lru_cache
def structure(kinds: str) -> type[ctypes.Structure]:
    """A C structure: n for int64_t, i for int, d for double, p for a pointer."""
    types = {"n": ctypes.c_int64, "i": ctypes.c_int, "d": ctypes.c_double, "p": ctypes.c_void_p}
    fields = [(f"f{number}", types[kind]) for number, kind in enumerate(kinds)]
    return type(f"Call_{kinds}", (ctypes.Structure,), {"_fields_": fields})


def call(
    function: str, kinds: str, arguments: Mapping[str, Tensor | float | None], rows: int, dtype: torch.dtype
) -> None:
    """Call a function of the library of this precision over rows. ``arguments`` in the order of its structure, of the
    ``kinds`` that `structure` knows; tensors are contiguous. RuntimeError where the memory runs out."""
    for name, value in arguments.items():
        assert not isinstance(value, Tensor) or value.is_contiguous(), name
    # Where a tensor begins can decide how loops over it are cut, and so how sums are rounded. torch begins its own
    # memory, that of results too, on a whole line of the cache; parts of a tensor or of a file lie anywhere.
    aligned = {
        name: value.clone() if isinstance(value, Tensor) and value.data_ptr() % LINE else value
        for name, value in arguments.items()
    }
    values = [value.data_ptr() if isinstance(value, Tensor) else value for value in aligned.values()]
    given = structure(kinds)(*values)
    compiled = getattr(library(PRECISIONS[dtype]), function)

    def part(first: int, last: int) -> int:
        failed: int = compiled(ctypes.byref(given), ctypes.c_int64(first), ctypes.c_int64(last))
        return failed

    size = sum(value.numel() for value in arguments.values() if isinstance(value, Tensor))
    threads = min(torch.get_num_threads(), rows) if size >= WORTH_A_THREAD else 1
    if threads <= 1:
        failed = part(0, rows)
    else:
        edges = [rows * number // threads for number in range(threads + 1)]
        # ctypes lets go of the interpreter's lock while a function runs.
        failed = max(_pool(os.getpid(), threads).map(part, edges[:-1], edges[1:]))
    if failed:
        raise RuntimeError(f"{function}: cannot allocate memory for its work")


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Of this process: threads do not live on in a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="muse-kernels")
