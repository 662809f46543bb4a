"""Kernels by the tensors of a call: a layer may be moved to another device, or made double, after it is built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from muse_core.contracts import KernelRequest

Function = Callable[..., Any]


class DispatchedKernel:
    """What a layer calls: ``function`` for tensors as in ``request``; what serves others is asked of ``select`` at the
    first call with them, and kept.

    The first argument that is a tensor with dimensions decides: its device, and float64 where it is of double
    precision. Lower precisions are one, for which the request's dtype stands.
    """

    def __init__(self, request: KernelRequest, function: Function, select: Callable[[KernelRequest], Function]):
        self.muse_operation = request.operation
        """For ``kernels.operation_of``."""
        self.request = request
        self.function = function
        self.place = request.device, request.dtype
        self.elsewhere: dict[tuple[str, str], Function] = {}
        """By device and dtype."""
        self.select = select

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        place = self.place
        for one in (*arguments, *named.values()):
            if isinstance(one, Tensor) and one.ndim:
                double = one.dtype in (torch.float64, torch.complex128)
                place = one.device.type, "float64" if double else place[1]
                break
        if place == self.place:
            return self.function(*arguments, **named)
        if place in self.elsewhere:
            return self.elsewhere[place](*arguments, **named)
        selected = self._selected_between_graphs if torch.compiler.is_compiling() else self._selected
        return selected(place)(*arguments, **named)

    def _selected(self, place: tuple[str, str]) -> Function:
        device, dtype = place
        self.elsewhere[place] = self.select(self.request._replace(device=device, dtype=dtype))
        return self.elsewhere[place]

    # torch.compiler.disable would import the compiler here and now, which takes as long as torch itself.
    _selected_between_graphs = _disable_dynamo(_selected)

    def __deepcopy__(self, memo: Any) -> DispatchedKernel:
        """A copy of a layer computes by the same functions."""
        return self
