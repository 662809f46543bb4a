"""What one step of a generation computes, as a flat list of tensor operations without the modules around them.

A step for one token is a thousand small operations, and most of its time is spent between them. Recorded are the
operations themselves, in their order and with their arguments; left out is whatever neither the scores nor the next
state depend on (the layers' measures), and whatever depends on weights alone is computed once. What is left gives the
same bits.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

LEAVES_TORCH = frozenset({"tolist", "numpy", "data_ptr", "__array__", "__dlpack__", "item"})
"""Methods of tensors whose result torch does not see."""


class NotRecordable(Exception):
    """Why a step cannot be replayed from a recording, in half a sentence."""


class Call(NamedTuple):
    """One operation as it was dispatched."""

    function: Any
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    result: Any

    @property
    def read(self) -> list[Tensor]:
        return tensors((self.arguments, self.keywords))

    @property
    def made(self) -> list[Tensor]:
        return tensors(self.result)

    @property
    def changed(self) -> list[Tensor]:
        """Arguments that the operation writes to."""
        if not self.function._schema.is_mutable:
            return []
        found: list[Tensor] = []
        for place, argument in enumerate(self.function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = self.arguments[place] if place < len(self.arguments) else self.keywords.get(argument.name)
                found += tensors(given)
        return found


def record(step: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """``step(*inputs)`` as a graph that computes the same from inputs of the same shapes, strides and dtypes.

    Everything else that the step reads is taken to stay as it is: weights, and numbers of Python. Raises NotRecordable
    where a value of a tensor decides in Python how the step goes on, for random numbers, and where an input or a weight
    is changed in place.
    """
    recorder = _Recorder(inputs)
    with torch.no_grad(), recorder, _RefuseValues(recorder):
        outputs = list(step(*inputs))
    return _graph(recorder, list(inputs), outputs)


def tensors(values: Any) -> list[Tensor]:
    """The tensors of a tree."""
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


class _Recorder(TorchDispatchMode):
    """Keeps every call, and with it every tensor, so that none of their addresses is used twice."""

    def __init__(self, inputs: Sequence[Tensor]):
        super().__init__()
        self.calls: list[Call] = []
        self.given = {_storage(x) for x in inputs}
        self.dynamic = set(self.given)
        """Storages whose content depends on the inputs."""
        self.made: set[int] = set()
        """Storages that an operation of the step has made."""
        self.changed: set[int] = set()
        """Storages that are written to after they were made."""

    def depends(self, values: Iterable[Tensor]) -> bool:
        return any(_storage(x) in self.dynamic for x in values)

    def keep(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        """Compute, and keep the call."""
        with torch._C.DisableTorchFunction():  # what an operator does inside is its own affair
            call = Call(function, arguments, keywords or {}, function(*arguments, **(keywords or {})))
            dependent = self.depends(call.read)
            _refuse(function, dependent)
            for x in call.changed:
                if _storage(x) not in self.made:
                    what = "its input" if _storage(x) in self.given else "a weight or a constant"
                    raise NotRecordable(f"{function} changes {what} in place")
                self.changed.add(_storage(x))
            read = {_storage(x) for x in call.read}
            for x in call.made:
                if _storage(x) not in read:
                    self.made.add(_storage(x))
                if dependent:
                    self.dynamic.add(_storage(x))
            if dependent:
                self.dynamic.update(_storage(x) for x in call.changed)
        self.calls.append(call)
        return call.result


# Set afterwards, because torch wraps what it finds in the class body in a guard that imports torch.compile, a second.
_Recorder.__torch_dispatch__ = _Recorder.keep  # type: ignore[method-assign]


def _refuse(function: Any, dependent: bool) -> None:
    if torch.Tag.nondeterministic_seeded in function.tags:
        raise NotRecordable(f"{function} draws random numbers")
    if dependent and {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(function.tags):
        raise NotRecordable(f"{function} lets a value decide how the step goes on")


class _RefuseValues(TorchFunctionMode):
    """Refuses the methods that take values out of a tensor without an operation."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in LEAVES_TORCH and self.recorder.depends(tensors(arguments)):
            raise NotRecordable(f"Tensor.{name} lets a value decide how the step goes on")
        return function(*arguments, **(keywords or {}))


def _graph(recorder: _Recorder, inputs: list[Tensor], outputs: list[Tensor]) -> fx.GraphModule:
    graph, holder = fx.Graph(), torch.nn.Module()
    nodes: dict[int, fx.Node] = {id(x): graph.placeholder(f"input_{place}") for place, x in enumerate(inputs)}
    seen: dict[Any, fx.Node] = {}

    def node(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if id(x) not in nodes:
            name = f"constant_{len(nodes)}"
            holder.register_buffer(name, x)
            nodes[id(x)] = graph.get_attr(name)
        return nodes[id(x)]

    for call in _needed(recorder, outputs):
        steady = not call.changed and not any(_storage(x) in recorder.changed for x in [*call.read, *call.made])
        if steady and not recorder.depends(call.read):
            continue  # known now: what reads it takes the tensor itself
        if isinstance(call.result, Tensor) and (same := _same_view(call)) is not None:
            nodes[id(call.result)] = node(same)
            continue
        arguments, keywords = pytree.tree_map(node, (tuple(call.arguments), call.keywords))
        key = (call.function, repr(arguments), repr(keywords)) if steady else id(call)
        if key not in seen:
            seen[key] = graph.call_function(call.function, arguments, keywords)
        if isinstance(call.result, Tensor):
            nodes[id(call.result)] = seen[key]
            continue
        for place, x in enumerate(call.result):
            if isinstance(x, Tensor):
                nodes[id(x)] = graph.call_function(operator.getitem, (seen[key], place))
    graph.output(tuple(node(x) for x in outputs))
    return fx.GraphModule(holder, graph)


def _needed(recorder: _Recorder, outputs: list[Tensor]) -> list[Call]:
    """The calls that the outputs depend on, in order."""
    values = {id(x) for x in outputs}
    storages = {_storage(x) for x in outputs}
    found = []
    for call in reversed(recorder.calls):
        if any(id(x) in values for x in call.made) or any(_storage(x) in storages for x in call.changed):
            found.append(call)
            values.update(id(x) for x in call.read)
            storages.update(_storage(x) for x in call.read)
    return found[::-1]


def _same_view(call: Call) -> Tensor | None:
    """The argument that the result is, entry by entry and in the same memory."""
    if not call.read or call.changed:
        return None
    x, y = call.read[0], call.result

    def seen(z: Tensor) -> tuple[Any, ...]:
        return _storage(z), z.shape, z.stride(), z.storage_offset(), z.dtype, z.is_conj(), z.is_neg()

    return x if seen(x) == seen(y) else None
