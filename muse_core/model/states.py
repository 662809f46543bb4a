"""The state of a layer, a tree of dicts of tensors: its tensors by path, what it is after a row's last token, and what
of it a checkpoint cannot hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def leaves(state: Any) -> list[tuple[str, Tensor]]:
    """Tensors of a state by path, as a checkpoint names them."""

    def below(value: Any, prefix: str) -> list[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            return [(prefix.removeprefix("/"), value)]
        if value is None:
            return []
        items = enumerate(value) if isinstance(value, list) else value.items()
        return [found for key, item in items for found in below(item, f"{prefix}/{key}")]

    return below(state, "")


def rebuilt(tensors: Mapping[str, Tensor]) -> Any:
    """The state of ``leaves``, a tree of dicts; None of no tensors. What held none, as None or an empty dict does, is
    not in it: a checkpoint keeps tensors alone."""
    if "" in tensors:
        return tensors[""]
    state: dict[str, Any] = {}
    for path, tensor in tensors.items():
        *above, last = path.split("/")
        node = state
        for part in above:
            node = node.setdefault(part, {})
        node[last] = tensor
    return state or None


def stored(x: Tensor) -> Tensor:
    """Complex (…) → real (…, 2), as a state holds it."""
    return torch.view_as_real(x)


def restored(x: Tensor) -> Tensor:
    """Real (…, 2), as a state holds complex numbers → complex (…)."""
    return torch.view_as_complex(x.contiguous())


def last_valid(x: Tensor, before: Tensor | None, valid: Tensor | None) -> Tensor:
    """The entry of each row at its last valid token, or ``before`` (zero if None) where a row has none.

    x (B, N, …), ``before`` (B, …), ``valid`` (B, N) bool with padding on the right; returns (B, …).
    """
    if valid is None:
        return x[:, -1] if x.shape[1] == 1 else x[:, -1].clone()  # a view would keep all N tokens in memory
    count = valid.sum(dim=1)
    entry = x[torch.arange(x.shape[0], device=x.device), (count - 1).clamp(min=0)]
    before = torch.zeros_like(entry) if before is None else before
    return torch.where((count > 0).view(-1, *(1,) * (entry.ndim - 1)), entry, before)


def unstorable(state: Any, path: str) -> str | None:
    """Why a state could not be in a checkpoint."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        if state.is_complex():
            return f"{path} is complex; store a trailing axis of 2"
        if state.is_floating_point() and state.dtype.itemsize < 4:
            return f"{path} is {str(state.dtype).removeprefix('torch.')}; a state is at least float32"
        return None
    if not isinstance(state, dict):
        return f"{path} is {said(state)}; a state is a tree of dicts of tensors"
    for key, value in state.items():
        if not isinstance(key, str) or "/" in key:
            return f"{path} has the key {key!r}; keys are strings without a slash"
        fault = unstorable(value, f"{path}.{key}")
        if fault is not None:
            return fault
    return None


def said(value: Any) -> str:
    """``a tuple of 2``, ``None``, ``a float``: what a message calls a value of the wrong kind."""
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, tuple | list) else f"a {kind}"
