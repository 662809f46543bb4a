"""Choice of kernels: bound once at build, printed and locked. The one place that selects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from muse_core.component import load
from muse_core.contracts import KernelBackend, KernelRequest
from muse_core.errors import RecipeError

CHUNKED = frozenset({"fast_weights"})
"""Operations with an argument ``chunk``."""


@attrs.frozen(kw_only=True)
class Chosen:
    """One binding, for the listing and the lock."""

    operation: str
    backend: str
    implementation: str
    refused: tuple[tuple[str, str], ...]
    """Backends that came first and why they were passed over."""


def choose(request: KernelRequest, backends: Sequence[tuple[str, KernelBackend]]) -> Chosen:
    """The first backend, in the given order, that has the operation and does not refuse the request.

    Raises RecipeError with every reason when none serves it.
    """
    refused: list[tuple[str, str]] = []
    for name, backend in backends:
        implementation = backend.operations().get(request.operation)
        reason = "does not have it" if implementation is None else backend.refuse(request)
        if reason is None:
            return Chosen(
                operation=request.operation, backend=name, implementation=implementation, refused=tuple(refused)
            )
        refused.append((name, reason))
    reasons = "; ".join(f"{name} {reason}" for name, reason in refused) or "no kernel backend is installed"
    raise RecipeError(f"kernels: {request.operation} on {request.device} in {request.dtype}: {reasons}")


def ranked(backends: Iterable[tuple[str, KernelBackend]]) -> list[tuple[str, KernelBackend]]:
    """Order for ``kernels.backend = "auto"``: highest rank first. Equal ranks raise RecipeError naming both."""
    ordered = sorted(backends, key=lambda item: -item[1].rank)
    for (first, a), (second, b) in zip(ordered, ordered[1:]):
        if a.rank == b.rank:
            raise RecipeError(
                f"kernels.backend: {first} and {second} have the same rank {a.rank}; "
                f'name the order: backend = ["{first}", "{second}"]'
            )
    return ordered


class BoundKernels:
    """Binds operations for one device and dtype, and remembers every choice. ``chunk`` is the performance choice of
    operations that compute tokens in chunks."""

    def __init__(
        self, backends: Sequence[tuple[str, KernelBackend]], *, device: str, dtype: str, chunk: int | None = None
    ):
        self.backends = tuple(backends)
        self.device = device
        self.dtype = dtype
        self.chunk = chunk
        self.choices: dict[str, Chosen] = {}

    def bind(
        self,
        operation: str,
        *,
        sizes: Mapping[str, int] | None = None,
        needs: Iterable[str] = ("gradient",),
    ) -> Callable[..., Any]:
        """The function that will compute ``operation``, with the signature of its muse_kernels namesake without
        ``backend``. Raises RecipeError when no backend serves the request."""
        request = KernelRequest(operation, self.device, self.dtype, dict(sizes or {}), frozenset(needs))
        chosen = choose(request, self.backends)
        key = operation + "".join(f" {name}={size}" for name, size in sorted(request.sizes.items()))
        self.choices[key] = chosen
        function = load(chosen.implementation)
        return function if self.chunk is None or operation not in CHUNKED else partial(function, chunk=self.chunk)
