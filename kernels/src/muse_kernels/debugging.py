"""The switch for checks of values, which read the tensors back and so wait for the device."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_ENABLED = ContextVar("muse_kernels_debug", default=False)


@contextmanager
def debug(enabled: bool = True) -> Iterator[None]:
    """Within the block, operations check values too: Im energy > 0, log_decay <= 0, everything finite.

    >>> from muse_kernels import debug
    >>> with debug():
    ...     pass  # call operations here; compiled code skips the checks
    """
    token = _ENABLED.set(enabled)
    try:
        yield
    finally:
        _ENABLED.reset(token)


def checks_values() -> bool:
    """Whether this call should check values; always False in code under torch.compile."""
    return not torch.compiler.is_compiling() and _ENABLED.get()
