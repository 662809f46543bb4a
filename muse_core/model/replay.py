"""Steps of a generation that are replayed: found to recur, recorded, checked against the layers' own code, kept.

On a CPU the recorded operations are run by torch's interpreter for TorchScript, on a GPU they are one CUDA graph.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from muse_core.contracts import State, Tokens
from muse_core.model.recording import NotRecordable, constants, record, same

RECORD_AFTER = 32
"""Calls of one kind that the layers' own code does before the next is recorded, which costs about as much as these: so
never much more than twice the time is spent that would have been best."""
COMPARE_AT = 2
"""Calls of a kind after which it is compared with those that are recorded."""
MOST = 32
"""Kinds of calls that are kept recorded for one stream."""
KINDS = 1024
"""Kinds of calls that are counted; a state that grows makes every call one of its own."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""How far, in units of the largest, a score or an entry of the state may be from that of the layers' own code; 2e-2 for
shorter dtypes."""
log = logging.getLogger(__name__)


class Form:
    """Structure of a state, and shapes and dtypes of its tensors; hashed once."""

    __slots__ = ("number", "others", "parts", "spec")

    def __init__(self, values: Sequence[Any], spec: Any):
        self.spec = spec
        self.others = tuple(None if isinstance(x, Tensor) else (x,) for x in values)
        """What stands in the place of a tensor, such as None, in a tuple."""
        self.parts = spec, self.others, tuple((x.shape, x.dtype) for x in values if isinstance(x, Tensor))
        self.number = hash(self.parts[1:])  # torch 2.6 compares the structures of states and does not hash them

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Form) and self.parts == other.parts)


class Carried:
    """A state as its tensors. ``owner`` is what overwrites them at its next call; None, and they stay as they are.
    ``maker`` is the recording that they come from."""

    __slots__ = ("form", "leaves", "maker", "owner")

    def __init__(self, leaves: list[Tensor], form: Form, owner: object = None, maker: object = None):
        self.leaves, self.form, self.owner, self.maker = leaves, form, owner, maker

    @classmethod
    def of(cls, state: State) -> Carried:
        values, spec = pytree.tree_flatten(state)
        return cls([x for x in values if isinstance(x, Tensor)], Form(values, spec))

    def lasting(self) -> Carried:
        """The same in memory of its own, where somebody else would overwrite it."""
        return self if self.owner is None else Carried([x.clone() for x in self.leaves], self.form)

    @property
    def state(self) -> State:
        leaves = iter(self.lasting().leaves)
        return pytree.tree_unflatten([next(leaves) if x is None else x[0] for x in self.form.others], self.form.spec)


class Kind(NamedTuple):
    """Calls that one recording serves."""

    shape: torch.Size
    """(B, N) of the ids."""
    grid: tuple[int, ...]
    """How many tokens in the next end of each period lies, or N + 1 for beyond the call."""
    form: Form

    def may_do_as(self, other: Kind) -> bool:
        """Whether they differ only in which periods begin with the call, which layers need not heed."""
        edges = (0, self.shape[1] + 1)
        return (self.shape, self.form) == (other.shape, other.form) and all(
            x == y or (x in edges and y in edges) for x, y in zip(self.grid, other.grid, strict=True)
        )


class Replays:
    """The recordings of one model for one stream. The weights must not change meanwhile."""

    def __init__(
        self,
        model: Any,
        stream_period: int,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[object]],
    ):
        self.model, self.stream_period, self.device, self.precision = model, stream_period, device, precision
        self.periods: tuple[int, ...] | None = getattr(model, "periods", None)
        self.counts: dict[Kind, int] = {}
        self.kept: dict[Kind, Any] = {}
        self.constants: dict[Any, list[Tensor]] = {}
        """Of all recordings, by shape, strides and dtype."""
        self.refused = model.training or device.type not in ("cpu", "cuda")

    def kind(self, shape: torch.Size, carried: Carried, done: int) -> Kind:
        """Where no period's end or beginning differs, the call does the same operations."""
        if self.periods is None:
            grid: tuple[int, ...] = (done % self.stream_period,)
        else:
            grid = tuple(min(-done % period, shape[1] + 1) for period in self.periods)
        return Kind(shape, grid, carried.form)

    def own(
        self, ids: Tensor, positions: Tensor, carried: Carried, done: int, *, scored: int | None = None
    ) -> tuple[Tensor, Carried]:
        """Scores of the last ``scored`` tokens, by default of all (B, N, V), and state, by the layers' own code."""
        with self.precision():
            output = self.model(ids, carried.state, Tokens(positions, offset=done % self.stream_period))
            hidden = output.hidden if scored is None else output.hidden[:, output.hidden.shape[1] - scored :]
            scores = self.model.logits(hidden)
        return scores, Carried.of(output.state)

    def __call__(self, ids: Tensor, carried: Carried, done: int) -> tuple[Tensor, Carried] | None:
        """Scores (B, N, V) and state from a recording; None where there is none, and the layers' code must be run.
        ``ids`` may be on the CPU.

        What it returns on a GPU lies in memory that the next call overwrites.
        """
        if self.refused:
            return None
        kind = self.kind(ids.shape, carried, done)
        replay = self.kept.get(kind)
        if replay is not None:
            return replay(ids, carried, done)
        if len(self.counts) < KINDS or kind in self.counts:
            self.counts[kind] = self.counts.get(kind, 0) + 1
        count = self.counts.get(kind, 0)
        similar = [made for other, made in self.kept.items() if kind.may_do_as(other)]
        if len(self.kept) >= MOST or not (count > RECORD_AFTER or (count == COMPARE_AT and similar)):
            return None
        try:
            made = self.made(ids.to(self.device), carried, done, similar, count > RECORD_AFTER)
        except NotRecordable as reason:
            self.refused = True
            log.warning("every token runs the layers' own code, which is slower than a recorded step: %s", reason)
            return None
        if made is None:
            return None
        self.kept[kind] = made
        return made(ids, carried, done)

    def made(self, ids: Tensor, carried: Carried, done: int, similar: Sequence[Any], new: bool) -> Any:
        """What replays this call: one of ``similar`` that does the same operations, or where a ``new`` one is wanted
        that, checked on the call. Raises NotRecordable."""
        found: dict[str, Carried] = {}

        def step(ids: Tensor, positions: Tensor, *leaves: Tensor) -> list[Tensor]:
            scores, found["after"] = self.own(ids, positions, Carried(list(leaves), carried.form), done)
            return [scores, *found["after"].leaves]

        leaves = [x.clone(memory_format=torch.contiguous_format) for x in carried.leaves]
        start = Carried(leaves, carried.form)
        inputs = [ids.clone(), positions_of(ids, done), *(x.clone() for x in leaves)]
        graph = record(step, inputs)
        simplified = getattr(self.model, "simplified", None)
        if simplified is not None:
            graph = simplified(graph, inputs)
        for other in similar:
            if other.form == found["after"].form and same(graph, other.recorded):
                return other
        if not new:
            return None
        self.share(graph)
        replay = (Captured if self.device.type == "cuda" else Interpreted)(graph, inputs, found["after"])
        for given in (ids, (ids + 1) % self.model.vocabulary_size):
            expected, after = self.own(given, positions_of(ids, done), start, done)
            scores, replayed = replay(given, start, done)
            _refuse_other([expected, *after.leaves], [scores, *replayed.leaves])
        return replay

    def share(self, graph: fx.GraphModule) -> None:
        """Let recordings have equal constants once, such as weights in a shorter dtype."""
        for name, x in constants(graph):
            known = self.constants.setdefault((x.shape, x.stride(), x.dtype), [])
            equal = next((other for other in known if other is x or torch.equal(other, x)), None)
            if equal is None:
                known.append(x)
            else:
                setattr(graph, name, equal.detach())  # TorchScript takes no tensor twice, but its memory


def positions_of(ids: Tensor, done: int) -> Tensor:
    """(B, N): the places of ids after ``done`` tokens."""
    return (done + torch.arange(ids.shape[1], device=ids.device)).expand(ids.shape[0], -1).contiguous()


def _refuse_other(expected: Sequence[Tensor], found: Sequence[Tensor]) -> None:
    for number, (x, y) in enumerate(zip(expected, found, strict=True)):
        least = TOLERANCE.get(min(x.dtype, expected[0].dtype, key=lambda dtype: dtype.itemsize), 2e-2)
        x, y = x.double(), y.double()
        atol = least * max(1.0, float(x.nan_to_num(0.0, 0.0, 0.0).abs().max())) if x.numel() else 0.0
        if not torch.allclose(x, y, rtol=0.0, atol=atol, equal_nan=True):
            what = f"tensor {number} of the state, {tuple(x.shape)}," if number else "scores"
            raise NotRecordable(
                f"a layer does what torch does not see, so that the recorded step gives other {what} apart by up to "
                f"{float((x - y).abs().max()):.1e} of {float(x.abs().max()):.1e}"
            )


class Interpreted:
    """A recording on a CPU; what it returns stays as it is."""

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor], after: Carried):
        self.form = after.form
        self.recorded = graph
        self.places = positions_of(inputs[0], 0)
        self.strides = [x.stride() for x in inputs[2:]]
        self.settled = False
        """What it returns lies in memory as what it takes, and can be given back as it is."""
        self.run: Callable[..., Any] = graph
        if sys.version_info < (3, 14):  # from there on torch does not support its interpreter
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # in favour of compilers that take half a minute
                traced = torch.jit.trace(graph.eval(), tuple(inputs), check_trace=False)
                self.run = torch.jit.freeze(traced.eval())

    def __call__(self, ids: Tensor, carried: Carried, done: int) -> tuple[Tensor, Carried]:
        leaves = carried.leaves
        if not (self.settled and carried.maker is self):
            laid = [x.stride() == stride and not x.storage_offset() for x, stride in zip(leaves, self.strides)]
            leaves = [x if kept else x.clone(memory_format=torch.contiguous_format) for x, kept in zip(leaves, laid)]
            self.settled = carried.maker is self and all(x is y for x, y in zip(leaves, carried.leaves))
        with torch.inference_mode(), _without_autocast("cpu"):
            scores, *after = self.run(ids, self.places + done, *leaves)
        return scores, Carried(after, self.form, maker=self)


class Captured:
    """A recording as a CUDA graph, which reads its inputs in fixed places and leaves its outputs in others.

    The last thing that it does is to put the new state where the next call reads it, and to count the tokens, so that
    what the next call must bring is its ids alone.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor], after: Carried):
        self.form = after.form
        self.recorded = graph
        self.ids, _, *self.leaves = inputs
        # All that the graph reads is kept with it: the memory of anything else would be given to others.
        self.done = torch.zeros((), dtype=torch.long, device=self.ids.device)
        self.places = positions_of(self.ids, 0)
        self.read: int | None = None
        """Tokens that ``done`` counts after the last call."""
        self.graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.device(self.ids.device), _without_autocast("cuda"):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self._step()
            torch.cuda.current_stream().wait_stream(side)
            try:
                with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                    self.scores, self.after, self.hands_over = self._step()
            except RuntimeError as error:
                raise NotRecordable(f"CUDA cannot capture it ({str(error).splitlines()[0]})") from error

    def _step(self) -> tuple[Tensor, list[Tensor], bool]:
        """Scores, state, and whether it is where the next call reads it."""
        scores, *after = self.recorded(self.ids, self.places + self.done, *self.leaves)
        self.done += self.ids.shape[1]
        hands_over = _fits(after, self.leaves)
        if hands_over and after:
            torch._foreach_copy_(self.leaves, after)
        return scores, after, hands_over

    def __call__(self, ids: Tensor, carried: Carried, done: int) -> tuple[Tensor, Carried]:
        with torch.inference_mode(), torch.cuda.device(self.ids.device):
            if not (self.hands_over and carried.owner is self):
                torch._foreach_copy_(self.leaves, carried.leaves)
            if done != self.read:
                self.done.fill_(done)
            self.ids.copy_(ids)
            self.graph.replay()
        self.read = done + ids.shape[1]
        return self.scores, Carried(self.after, self.form, self)


def _fits(after: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    """Whether one state can be written over the other: alike, and no other part of it in the same memory."""
    held = [x.untyped_storage().data_ptr() for x in before]
    return len(after) == len(before) and all(
        (x.shape, x.dtype) == (y.shape, y.dtype) and (x is y or x.untyped_storage().data_ptr() not in held)
        for x, y in zip(after, before)
    )


def _without_autocast(device: str) -> AbstractContextManager[object]:
    """What was recorded has its casts among its operations."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
