"""What a call asks of a backend, and what there is to ask for; imports nothing of this package."""

from collections.abc import Mapping
from typing import NamedTuple

OPERATIONS = (
    "causal_convolution",
    "resolvent_diagonal",
    "causal_resolvent_diagonal",
    "causal_resolvent_apply",
    "decayed_scores",
    "deep_memory",
    "fast_weights",
    "gated_norm",
    "short_convolution",
    "trace_attention",
)
"""What there is; every backend but "native" defines all."""
BACKENDS = ("triton", "native", "torch", "reference")
"""In the order in which "auto" asks them."""


class KernelRequest(NamedTuple):
    """What a call needs of a backend.

    A program that chooses backends of its own, and must not import this package, may define the same fields under the
    same name: `refusals` read fields only, never the type.
    """

    operation: str
    device: str
    """"cpu" or "cuda"."""
    dtype: str
    """"float32", "bfloat16", "float16" or "float64": precision of the tensors."""
    sizes: Mapping[str, int] = {}
    """Head sizes where an operation has them, such as {"key": 64, "value": 64}."""
    needs: frozenset[str] = frozenset({"gradient"})
    """Among "gradient", "double_backward", "resets" and "group"."""
