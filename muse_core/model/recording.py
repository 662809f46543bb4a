"""What one step of a generation computes, as a flat list of tensor operations without the modules around them.

A step for one token is a thousand small operations, and most of its time is spent between them. Recorded are the
operations themselves, in their order and with their arguments; left out is whatever neither the scores nor the next
state depend on (the layers' measures), and whatever depends on weights alone is computed once. What is left gives the
same bits.
"""

from __future__ import annotations

import math
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

    def argument(self, name: str) -> Any:
        """The value of an argument, given or by default; None where the operation has none of this name."""
        for place, argument in enumerate(self.function._schema.arguments):
            if argument.name == name:
                given = self.keywords.get(name, argument.default_value)
                return self.arguments[place] if place < len(self.arguments) else given
        return None

    @property
    def changed(self) -> list[Tensor]:
        """Arguments that the operation writes to."""
        if not self.function._schema.is_mutable:
            return []
        found: list[Tensor] = []
        for argument in self.function._schema.arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                found += tensors(self.argument(argument.name))
        return found


def record(step: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor]) -> fx.GraphModule:
    """``step(*inputs)`` as a graph that computes the same from inputs of the same shapes, strides and dtypes, each at
    the beginning of its memory.

    Everything else that the step reads is taken to stay as it is: weights, and numbers of Python. Raises NotRecordable
    where a value of a tensor decides in Python how the step goes on, for random numbers, and where an input or a weight
    is changed in place.
    """
    recorder = _Recorder(inputs)
    with torch.no_grad(), recorder, _RefuseValues(recorder):
        outputs = list(step(*inputs))
    return _graph(recorder, list(inputs), outputs)


def same(one: fx.GraphModule, other: fx.GraphModule) -> bool:
    """Whether two recordings do the same operations with the same constants."""
    return one.code == other.code and all(
        torch.equal(x, y) for (_, x), (_, y) in zip(constants(one), constants(other), strict=True)
    )


def constants(graph: fx.GraphModule) -> list[tuple[str, Tensor]]:
    """What a recording holds, by name."""
    return list(graph.named_buffers(remove_duplicate=False))


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
            _refuse(call, dependent)
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


def _refuse(call: Call, dependent: bool) -> None:
    function = call.function
    if torch.Tag.nondeterministic_seeded in function.tags and call.argument("dropout_p") != 0.0:
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


class _Writer:
    """Writes the needed calls into a graph."""

    def __init__(self, recorder: _Recorder, inputs: list[Tensor]):
        self.recorder = recorder
        self.graph, self.holder = fx.Graph(), torch.nn.Module()
        self.nodes = {id(x): self.graph.placeholder(f"input_{place}") for place, x in enumerate(inputs)}
        self.seen: dict[Any, fx.Node] = {}
        self.numbers: dict[tuple[float, torch.dtype], Tensor] = {}
        self.views: dict[int, tuple[Call, Tensor]] = {}
        """Id of a view → the call that made it, and the tensor that it and the views before it are views of."""

    def node(self, x: Any) -> Any:
        """What stands for x, which need not be a tensor, among the arguments of a call."""
        if not isinstance(x, Tensor):
            return x
        if id(x) not in self.nodes and id(x) in self.views:
            call, base = self.views[id(x)]
            if _laid(x) == _laid(base):
                self.nodes[id(x)] = self.node(base)
            elif base is call.read[0] and isinstance(call.result, Tensor):
                self.write(call)
            else:  # one view in place of several
                place = (self.node(base), list(x.shape), list(x.stride()), x.storage_offset())
                self.nodes[id(x)] = self.shared(torch.ops.aten.as_strided.default, place, {})
        if id(x) not in self.nodes:
            name = f"constant_{len(self.nodes)}"
            self.holder.register_buffer(name, x.detach())
            self.nodes[id(x)] = self.graph.get_attr(name)
        return self.nodes[id(x)]

    def shared(self, function: Any, arguments: Any, keywords: Any) -> fx.Node:
        """The call, or the one that was written before with the same arguments."""
        key = function, repr(arguments), repr(keywords)
        if key not in self.seen:
            self.seen[key] = self.graph.call_function(function, arguments, keywords)
        return self.seen[key]

    def add(self, call: Call) -> None:
        """A call in its turn; views wait until something reads them."""
        changed = self.recorder.changed
        steady = not call.changed and not any(_storage(x) in changed for x in [*call.read, *call.made])
        if steady and not self.recorder.depends(call.read):
            return  # known now: what reads it takes the tensor itself
        if _is_view(call):
            x = call.read[0]
            _, base = self.views.get(id(x), (None, x))
            self.views.update((id(y), (call, base)) for y in call.made)
        else:
            self.write(call, steady)

    def write(self, call: Call, steady: bool = True) -> None:
        function, arguments, keywords = self.spelled(call)
        written = (self.shared if steady else self.graph.call_function)(function, arguments, keywords)
        if isinstance(call.result, Tensor):
            self.nodes[id(call.result)] = written
            return
        for place, x in enumerate(call.result):
            if isinstance(x, Tensor):
                self.nodes[id(x)] = self.graph.call_function(operator.getitem, (written, place))

    def spelled(self, call: Call) -> tuple[Any, Any, Any]:
        """The call, or on a CPU one for the same numbers that makes no tensor of a number of Python each time, where
        torch does: a mean is the sum over the count, and what is added is a tensor."""
        x, given = call.read[0] if call.read else None, call.arguments
        if x is not None and x.device.type == "cpu" and x.is_floating_point() and not call.keywords:
            if call.function is torch.ops.aten.mean.dim and given[1]:
                count = math.prod(x.shape[axis] for axis in given[1])
                total = self.shared(torch.ops.aten.sum.dim_IntList, (self.node(x), *given[1:]), {})
                return torch.ops.aten.div.Tensor, (total, self.number(count, x.dtype)), {}
            if call.function is torch.ops.aten.add_.Scalar and len(given) == 2:
                return torch.ops.aten.add_.Tensor, (self.node(x), self.number(given[1], x.dtype)), {}
        arguments, keywords = pytree.tree_map(self.node, (tuple(call.arguments), call.keywords))
        return call.function, arguments, keywords

    def number(self, value: float, dtype: torch.dtype) -> fx.Node:
        """A number as a tensor without axes, which changes no dtype."""
        key = value, dtype
        if key not in self.numbers:
            self.numbers[key] = torch.tensor(value, dtype=dtype)
        return self.node(self.numbers[key])


def _graph(recorder: _Recorder, inputs: list[Tensor], outputs: list[Tensor]) -> fx.GraphModule:
    writer = _Writer(recorder, inputs)
    for call in _needed(recorder, outputs):
        writer.add(call)
    writer.graph.output(tuple(writer.node(x) for x in outputs))
    return fx.GraphModule(writer.holder, writer.graph)


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


def _laid(x: Tensor) -> tuple[Any, ...]:
    return x.shape, x.stride(), x.storage_offset()


def _is_view(call: Call) -> bool:
    """Whether the results are the numbers of the one tensor that is read, in their memory and as they are there."""
    if len(call.read) != 1 or call.changed:
        return False

    def kept(x: Tensor) -> tuple[Any, ...]:
        return _storage(x), x.dtype, x.is_conj(), x.is_neg()

    return all(kept(x) == kept(call.read[0]) for x in call.made)
