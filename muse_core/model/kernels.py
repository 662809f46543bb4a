"""Selection of kernels: bound once at build, printed and locked; for tensors elsewhere, at the first call with them.
The one place that selects."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import attrs

from muse_core.component import load
from muse_core.contracts import KernelBackend, KernelRequest
from muse_core.errors import MuseError, PluginError, RecipeError
from muse_core.plugins.raised import raised

CHUNKED = frozenset({"fast_weights"})
"""Operations with an argument ``chunk``."""
NOT_OFFERED = "does not have it"
"""The reason of a backend without the operation, as in "fla does not have it"."""


@attrs.frozen(kw_only=True)
class BackendSelection:
    """One binding, for the listing and the lock."""

    operation: str
    backend: str
    implementation: str
    refused: tuple[tuple[str, str], ...]
    """Backends that came first and why they were passed over."""


class ByRank(tuple[tuple[str, KernelBackend], ...]):
    """Backends of ``kernels.backend = "auto"``, highest rank first: of two with equal rank that both serve a request
    neither is selected. Any other sequence is an order that somebody named."""


def select_backend(request: KernelRequest, backends: Sequence[tuple[str, KernelBackend]]) -> BackendSelection:
    """The first backend, in the given order, that has the operation and does not refuse the request.

    Raises RecipeError with every reason when none serves it, and when two of equal rank do; PluginError naming a
    backend that raises or answers with neither None nor a sentence.
    """
    refused: list[tuple[str, str]] = []
    for index, (name, backend) in enumerate(backends):
        implementation, reason = _asked(name, backend, request)
        if reason is None:
            if isinstance(backends, ByRank):
                _refuse_tie(request, backends, index)
            return BackendSelection(
                operation=request.operation, backend=name, implementation=implementation, refused=tuple(refused)
            )
        refused.append((name, reason))
    reasons = "; ".join(f"{name} {reason}" for name, reason in refused) or "no kernel backend is installed"
    raise RecipeError(f"kernels: {request.operation} on {request.device} in {request.dtype}: {reasons}")


def _asked(name: str, backend: KernelBackend, request: KernelRequest) -> tuple[str, str | None]:
    """Its implementation of the request's operation, and why it does not serve it."""
    where = f"kernel backend {name!r} ({type(backend).__module__})"
    try:
        operations = backend.operations()
        if not isinstance(operations, Mapping):
            raise PluginError(f"{where}: operations() returned {type(operations).__name__} where a dict is due")
        implementation = operations.get(request.operation)
        if implementation is None:
            return "", NOT_OFFERED
        reason = backend.refuse(request)
    except MuseError:
        raise
    except Exception as error:
        raise PluginError(
            f"{where}: asked for {request.operation} it raised {raised(error, type(backend).__module__)}"
        ) from error
    if not isinstance(implementation, str):
        raise PluginError(f"{where}: {request.operation} is {implementation!r} where 'module:function' is due")
    if reason is not None and not isinstance(reason, str):
        raise PluginError(f"{where}: refuse({request.operation}) returned {reason!r} where None or a sentence is due")
    return implementation, reason


def _refuse_tie(request: KernelRequest, backends: ByRank, index: int) -> None:
    first, chosen = backends[index]
    for second, other in backends[index + 1 :]:
        if other.rank == chosen.rank and _asked(second, other, request)[1] is None:
            raise RecipeError(
                f"kernels.backend: {first} and {second} both serve {request.operation} and have the same rank "
                f'{chosen.rank}; name the order: backend = ["{first}", "{second}"]'
            )


def ranked(backends: Iterable[tuple[str, KernelBackend]]) -> ByRank:
    """Order for ``kernels.backend = "auto"``: highest rank first, equal ranks by name. Equal ranks are no fault as long
    as no operation is asked for that both serve. Raises PluginError for a rank that is not a whole number."""
    found = list(backends)
    for name, backend in found:
        if type(backend.rank) is not int:
            raise PluginError(
                f"kernel backend {name!r} ({type(backend).__module__}): rank is {backend.rank!r}, no whole number"
            )
    return ByRank(sorted(found, key=lambda item: (-item[1].rank, item[0])))


class _Core:
    """Stands behind all backends, for one operation that the core has an implementation of."""

    rank = -sys.maxsize

    def __init__(self, operation: str, implementation: str):
        self.offered = {operation: implementation}

    def operations(self) -> dict[str, str]:
        return self.offered

    def refuse(self, request: KernelRequest) -> str | None:
        return None


class BoundKernels:
    """Binds operations for one device and dtype, and remembers every selection. ``chunk`` is the performance choice of
    operations that compute tokens in chunks.

    A layer may be moved to another device or made double after it is built: a call whose tensors are not what was bound
    for goes to the backend that serves those (``dispatch``). ``selections`` are of what was bound for.
    """

    def __init__(
        self, backends: Sequence[tuple[str, KernelBackend]], *, device: str, dtype: str, chunk: int | None = None,
        sequence: Any = None,
    ):
        """``sequence``: the processes among which the tokens of a row are divided, see ``across``."""
        self.backends = backends if isinstance(backends, ByRank) else tuple(backends)
        self.device = device
        self.dtype = dtype
        self.chunk = chunk
        self.sequence = sequence
        self.selections: dict[str, BackendSelection] = {}

    def bind(
        self,
        operation: str,
        *,
        sizes: Mapping[str, int] | None = None,
        needs: Iterable[str] = ("gradient",),
        otherwise: str | None = None,
    ) -> Callable[..., Any]:
        """What will compute ``operation``, with the signature of its muse_kernels namesake without ``backend``, known
        to ``operation_of``. Raises RecipeError when no backend serves the request, PluginError when one does not work;
        a call with tensors elsewhere raises the same.

        ``otherwise``, as "module:function", computes what no backend serves, as the backend ``core``."""
        request = KernelRequest(operation, self.device, self.dtype, dict(sizes or {}), frozenset(needs))
        backends = self.backends
        if otherwise is not None:
            backends = type(backends)((*backends, ("core", _Core(operation, otherwise))))
        selected = select_backend(request, backends)
        key = operation + "".join(f" {name}={size}" for name, size in sorted(request.sizes.items()))
        self.selections[key] = selected
        from muse_core.model.dispatch import DispatchedKernel

        return DispatchedKernel(request, self._function(selected), partial(self._selected, backends))

    def _selected(self, backends: Sequence[tuple[str, KernelBackend]], request: KernelRequest) -> Callable[..., Any]:
        return self._function(select_backend(request, backends))

    def _function(self, selected: BackendSelection) -> Callable[..., Any]:
        """A backend's function, with the arguments that are the same in every call."""
        operation = selected.operation
        try:
            function = load(selected.implementation)
        except Exception as error:
            raise PluginError(
                f"kernel backend {selected.backend!r}: {operation} cannot be imported ({selected.implementation}): "
                f"{raised(error)}"
            ) from error
        if not callable(function):
            raise PluginError(
                f"kernel backend {selected.backend!r}: {operation}: {selected.implementation} cannot be called"
            )
        fixed = {"chunk": self.chunk} if self.chunk is not None and operation in CHUNKED else {}
        kernel = partial(function, **fixed)
        if self.sequence is None:
            return kernel
        from muse_core.model.across import across

        return across(kernel, operation, self.sequence)


def operation_of(value: object) -> str | None:
    """The operation that a bound kernel computes; None for anything else."""
    found = getattr(value, "muse_operation", None)
    return found if isinstance(found, str) else None
