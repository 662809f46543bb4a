"""Which backend serves a request, and why the others do not."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .refusals import REFUSALS
from .request import BACKENDS, OPERATIONS, KernelRequest


class BackendSelection(NamedTuple):
    """The answer to a request: the chosen backend, and each refusing backend's reason."""

    backend: str
    refusals: Mapping[str, str]


def select_backend(request: KernelRequest, backend: str = "auto") -> BackendSelection:
    """The backend that serves the request: the named one, or for "auto" the first that does not refuse.

    Raises ValueError for unknown names, and with every reason when nobody serves it.

    >>> from muse_kernels import KernelRequest, select_backend
    >>> select_backend(KernelRequest("resolvent_diagonal", "cpu", "float64")).backend
    'torch'
    """
    if request.operation not in OPERATIONS:
        raise ValueError(f"unknown operation {request.operation!r}; there are {', '.join(OPERATIONS)}")
    if backend != "auto" and backend not in BACKENDS:
        raise ValueError(f"{request.operation}: backend must be auto, {', '.join(BACKENDS)}; got {backend!r}")
    refusals = {}
    for name in BACKENDS if backend == "auto" else (backend,):
        reason = REFUSALS[name](request)
        if reason is None:
            return BackendSelection(name, refusals)
        refusals[name] = reason
    raise ValueError(f"{request.operation}: " + "; ".join(f"{name} refuses: {why}" for name, why in refusals.items()))


def implementation(operation: str, backend: str) -> Callable:
    """The backend's function for an operation; triton is imported here, when it is asked for, and not before."""
    if backend == "reference":
        from . import reference as functions
    elif backend == "native":
        from . import native as functions
    elif backend == "torch":
        from . import torch as functions
    else:
        from . import triton as functions
    return getattr(functions, operation)
