"""Whether what a layer returned keeps the contract: shapes, dtypes, devices and names, without reading a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from muse_core.contracts import LayerOutput
from muse_core.model.precision import product_dtype


def departure(
    output: Any, x: Tensor, signals: Mapping[str, tuple[int, ...]], *, differentiable: bool = True
) -> str | None:
    """How the output of a layer departs from ``contracts.LayerOutput``, in half a sentence, or None.

    x (B, N, D): the residual stream that the update will be added to. ``signals``: the names that are due, with their
    trailing shape. ``differentiable``: the update depends on the stream, so that with gradients enabled it has one.
    """
    if not isinstance(output, LayerOutput):
        return f"forward returned {_said(output)} where contracts.LayerOutput is due"
    update = output.update
    if not isinstance(update, Tensor):
        return f"the update is {_said(update)} where a tensor is due"
    if update.shape != x.shape:
        return f"the update has shape {tuple(update.shape)} where {tuple(x.shape)} is due"
    if update.dtype not in (x.dtype, product_dtype(x)):
        return f"the update is {_name(update.dtype)} for a stream in {_name(x.dtype)}"
    if update.device != x.device:
        return f"the update is on {update.device} and the stream on {x.device}"
    if differentiable and x.requires_grad and torch.is_grad_enabled() and not update.requires_grad:
        return (
            "the update has no gradient, so nothing before it could learn - if it is meant not to depend on the "
            "stream, its options class says ignores_stream = True"
        )
    return _wrong_signals(output.signals, x, signals) or _wrong_scalars(output, x) or _unstorable(output.state, "state")


def _wrong_signals(found: Any, x: Tensor, due: Mapping[str, tuple[int, ...]]) -> str | None:
    if not isinstance(found, dict):
        return f"signals is {_said(found)} where a dict is due"
    missing, extra = sorted(set(due) - set(found)), sorted(set(found) - set(due))
    if missing:
        return f"the signal {missing[0]!r} is missing, which a later layer reads"
    if extra:
        return f"there is a signal {extra[0]!r} that is not in context.publish"
    for name, trailing in due.items():
        value, shape = found[name], (*x.shape[:2], *trailing)
        if not isinstance(value, Tensor):
            return f"the signal {name!r} is {_said(value)} where a tensor is due"
        if tuple(value.shape) != shape:
            return f"the signal {name!r} has shape {tuple(value.shape)} where {shape} is due"
        if value.is_complex():
            return f"the signal {name!r} is complex; a trailing axis of 2 is due"
        if value.device != x.device:
            return f"the signal {name!r} is on {value.device} and the stream on {x.device}"
    return None


def _wrong_scalars(output: LayerOutput, x: Tensor) -> str | None:
    for what, values in (("loss", output.losses), ("metric", output.metrics)):
        if not isinstance(values, dict):
            return f"{'losses' if what == 'loss' else 'metrics'} is {_said(values)} where a dict is due"
        for name, value in values.items():
            if not isinstance(value, Tensor):
                return f"the {what} {name!r} is {_said(value)} where a scalar tensor is due"
            if value.shape != ():
                return f"the {what} {name!r} has shape {tuple(value.shape)} where a scalar is due"
            if value.is_complex():
                return f"the {what} {name!r} is complex"
            if what == "loss" and not value.is_floating_point():
                return f"the loss {name!r} is {_name(value.dtype)}"
            if what == "loss" and value.device != x.device:
                return f"the loss {name!r} is on {value.device} and the stream on {x.device}"
            if what == "metric" and value.requires_grad:
                return f"the metric {name!r} has a gradient; it must be detached"
    return None


def _unstorable(state: Any, path: str) -> str | None:
    """Why a state could not be in a checkpoint."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        if state.is_complex():
            return f"{path} is complex; store a trailing axis of 2"
        if state.is_floating_point() and state.dtype.itemsize < 4:
            return f"{path} is {_name(state.dtype)}; a state is at least float32"
        return None
    if not isinstance(state, dict):
        return f"{path} is {_said(state)}; a state is a tree of dicts of tensors"
    for key, value in state.items():
        if not isinstance(key, str) or "/" in key:
            return f"{path} has the key {key!r}; keys are strings without a slash"
        fault = _unstorable(value, f"{path}.{key}")
        if fault is not None:
            return fault
    return None


def _said(value: Any) -> str:
    """``a tuple of 2``, ``None``, ``a float``."""
    if value is None:
        return "None"
    kind = type(value).__name__
    return f"a {kind} of {len(value)}" if isinstance(value, tuple | list) else f"a {kind}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
