"""Whether an error says that memory ran out, the host's or a GPU's, in the words of whatever library was asked for it.
Imports no torch."""

from __future__ import annotations

import contextlib
import errno
import re
import sys
from collections.abc import Callable, Iterator

from muse_core.errors import OutOfMemory, causes

WORDS = (
    "out of memory",  # CUDA and its driver, which torch, Triton, NCCL and compiled code repeat
    "allocate memory",  # torch and the system, of the host's
    "not enough memory",  # torch on Windows
    "bad_alloc",  # C++, whose exceptions torch passes on by what they say
    "ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT
    "NVML_SUCCESS == r INTERNAL ASSERT FAILED",  # torch, where it cannot say how much other processes have
)
"""Parts of messages. The last one: https://github.com/pytorch/pytorch/issues/112377."""
NO_HANDLE = "STATUS_NOT_INITIALIZED"
"""What cuBLAS and cuDNN say where there is no room for a handle, and after other faults."""
HANDLE = 2**29
"""Bytes; of a GPU that has fewer free a handle is taken not to fit."""
AFTER = re.compile(r" Process \d| Including non-PyTorch")
"""Torch goes on with every process on the device, and with advice on its allocator."""


def ran_out(error: BaseException) -> bool:
    """Whether an exception, or what it was made of, says that memory ran out."""
    return any(_says_so(one) for one in causes(error))


def what_ran_out(error: BaseException) -> str:
    """What ``ran_out`` has found, in the library's own line."""
    found = next(str(one) for one in causes(error) if _says_so(one))
    lines = found.splitlines() or ["out of memory"]
    line = next((line for line in lines if any(words in line for words in WORDS)), lines[0])
    return AFTER.split(line)[0].strip()


@contextlib.contextmanager
def told(sentence: Callable[[str], str]) -> Iterator[None]:
    """Raises OutOfMemory for memory that ran out inside, also where it was taken for a fault of what needed it, with
    the ``sentence`` that is made of the library's line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemory) or not ran_out(error):
            raise
        raise OutOfMemory(sentence(what_ran_out(error))) from error


def _says_so(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or any(one.__name__ == "OutOfMemoryError" for one in type(error).__mro__):
        return True
    return isinstance(error, RuntimeError) and (any(words in str(error) for words in WORDS) or _no_handle(str(error)))


def _no_handle(text: str) -> bool:
    torch = sys.modules.get("torch")
    if NO_HANDLE not in text or torch is None:
        return False
    try:
        free, _ = torch.cuda.mem_get_info()
    except (RuntimeError, AssertionError):  # a GPU that a fault has stopped; a torch without any
        return False
    return bool(free < HANDLE)
