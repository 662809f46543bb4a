"""Which backend serves a request, and why the others do not."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from .refusals import REFUSALS


class Request(NamedTuple):
    """What a call needs of a backend."""

    operation: str
    device: str
    """"cpu" or "cuda"."""
    dtype: str
    """"float32", "bfloat16" or "float64": precision of the tensors."""
    sizes: Mapping[str, int] = {}
    """Head sizes where an operation has them, such as {"key": 64, "value": 64}."""
    needs: frozenset[str] = frozenset()
    """Among "gradient", "double_backward", "resets", "group"."""


class Choice(NamedTuple):
    """The answer to a request: the chosen backend, and each refusing backend's reason."""

    backend: str
    refusals: Mapping[str, str]


OPERATIONS = (
    "resolvent_diagonal",
    "causal_resolvent_diagonal",
    "causal_resolvent_apply",
    "fast_weights",
    "gated_norm",
    "short_convolution",
)
"""What every backend defines."""
BACKENDS = ("triton", "torch", "reference")
"""In the order in which "auto" asks them."""


def chosen(request: Request, backend: str = "auto") -> Choice:
    """The backend that serves the request: the named one, or for "auto" the first that does not refuse.

    Raises ValueError for unknown names, and with every reason when nobody serves it.

    >>> from muse_kernels import Request, chosen
    >>> chosen(Request("resolvent_diagonal", "cpu", "float64")).backend
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
            return Choice(name, refusals)
        refusals[name] = reason
    raise ValueError(f"{request.operation}: " + "; ".join(f"{name} refuses: {why}" for name, why in refusals.items()))


def implementation(operation: str, backend: str) -> Callable:
    """The backend's function for an operation; triton is imported here, when it is asked for, and not before."""
    if backend == "reference":
        from . import reference as functions
    elif backend == "torch":
        from . import torch as functions
    else:
        from . import triton as functions
    return getattr(functions, operation)
