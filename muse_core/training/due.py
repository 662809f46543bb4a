"""What a checkpoint must hold for a run to go on from it: every part is compared with what is due before any of it is
loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.contracts import Tokens
from muse_core.errors import StorageError
from muse_core.evaluation.held_out import undisturbed
from muse_core.model.exit import Exits
from muse_core.model.states import leaves
from muse_core.storage.checkpoint import Snapshot
from muse_core.training.optimizers import Optimizers
from muse_core.training.train_state import StreamState, TrainState

COUNTS = ("step", "accepted", "tokens")
JSON = ("stage", "position", "monitors", "objective")
RANDOM = ("random/cpu", "random/cuda")


def check_weights(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raises StorageError naming the first weight that the model has otherwise: name, shape or type."""
    own = model.state_dict()
    for name, value in tensors.items():
        if name not in own or own[name].shape != value.shape:
            there = "is not in the model" if name not in own else f"has shape {tuple(own[name].shape)} in the model"
            raise StorageError(f"checkpoint: {name} of shape {tuple(value.shape)} {there}; the recipe has changed")
        if own[name].dtype != value.dtype:
            raise StorageError(f"checkpoint: model: {name} is {value.dtype} and {own[name].dtype} in the model")
    if missing := sorted(set(own) - set(tensors)):
        raise StorageError(f"checkpoint: the model's {missing[0]} is not in it; the recipe has changed")


def check_due(state: TrainState, snapshot: Snapshot) -> None:
    """Raises StorageError naming the part and the key of a snapshot that is not what this run would save."""
    check_weights(state.model, snapshot.model)
    check_moments(state.optimizers, snapshot.optimizer)
    _check_random(snapshot.state)
    _check_json(snapshot)
    _check_carry(
        state, {name: value for name, value in snapshot.state.items() if name.startswith("carry/")}, snapshot.step
    )


def check_moments(optimizers: Optimizers, tensors: Mapping[str, Tensor]) -> None:
    """The optimiser's part: moments of trained parameters only, each with its parameter's shape, complete."""
    found: dict[str, set[str]] = {}
    for full, value in tensors.items():
        key, _, name = full.partition("/")
        if name not in optimizers.names:
            raise _wrong("optimizer", full, "belongs to no parameter that this stage trains")
        due = optimizers.due_of(name)
        if key not in due:
            raise _wrong(
                "optimizer", full, f"is of another optimiser: {optimizers.kind_of(name)} keeps "
                f"{', '.join(due)}. Moments of one cannot be used by another - put the recipe's "
                "train.optimizer back, or begin a new run with init.from, which takes the weights and no moments"
            )
        like = due[key]
        if value.shape != like.shape or value.is_floating_point() != like.is_floating_point():
            there = f"{value.dtype} of shape {tuple(value.shape)}"
            numbers = "floating-point" if like.is_floating_point() else "whole"
            raise _wrong("optimizer", full, f"is {there}; {numbers} numbers of shape {tuple(like.shape)} are due")
        found.setdefault(name, set()).add(key)
    for name, keys in found.items():
        if missing := [key for key in optimizers.keys_of(name) if key not in keys]:
            raise _wrong("optimizer", f"{missing[0]}/{name}", "is missing")


def _check_random(state: Mapping[str, Tensor]) -> None:
    if unknown := [name for name in state if name not in RANDOM and not name.startswith(("carry/", "objective/"))]:
        raise _wrong("state", unknown[0], "is nothing that a run saves")
    if "random/cpu" not in state:
        raise _wrong("state", "random/cpu", "is missing")
    try:
        torch.Generator().set_state(state["random/cpu"])
        if "random/cuda" in state and torch.cuda.is_available():
            torch.Generator("cuda").set_state(state["random/cuda"])
    except (RuntimeError, TypeError) as error:
        raise _wrong("state", "the random states", f"cannot be used ({str(error).partition(chr(10))[0]})") from error


def _check_carry(state: TrainState, tensors: Mapping[str, Tensor], step: int) -> None:
    """The carried states have the names, axes and types of those that the model returns, and the model goes on from
    them at ``step``. Lengths of axes may differ: attention keeps more the longer a stream is."""
    if not tensors:
        return
    if not state.stream_state.streams:
        raise _wrong("state", next(iter(tensors)), 'is carried only with data.order = "streams"')
    device = state.precision.device
    inputs, places = _blank(state)
    with undisturbed(state.model), state.precision():
        with _nobody_leaves(state) as may_leave:
            due = _carried([_after(state, ids, None, Tokens(places.expand_as(ids))) for ids in inputs])
        _compare_carry(tensors, due, may_lack_depths=may_leave)
        stream_state = StreamState(True, device)
        stream_state.load_state_dict({name.removeprefix("carry/"): value for name, value in tensors.items()})
        start = step * state.train.sequence_length
        for index, ids in enumerate(inputs):
            try:
                _after(state, ids, stream_state.of(index), Tokens(places.expand_as(ids) + start, offset=start))
            except (RuntimeError, IndexError, KeyError, TypeError, ValueError, AssertionError) as error:
                why = f"is not a state that this model goes on from ({str(error).partition(chr(10))[0]})"
                raise _wrong("state", f"carry/{index}", why) from error


def expected_carry(state: TrainState) -> dict[str, Tensor]:
    """What checkpoints of streams will hold of carried states, at most: names, types and shapes, without the memory. An
    axis that grows from the first segment to the second, as attention's, is taken to grow so at every step."""
    if not state.stream_state.streams:
        return {}
    length, inputs, places = state.train.sequence_length, *_blank(state)
    with undisturbed(state.model), state.precision(), _nobody_leaves(state):
        first = [_after(state, ids, None, Tokens(places.expand_as(ids))) for ids in inputs]
        later = Tokens(places + length, offset=length)
        second = [
            _after(state, ids, carried, later._replace(positions=later.positions.expand_as(ids)))
            for ids, carried in zip(inputs, first, strict=True)
        ]
    before, more = _carried(first), max(state.train.steps - 2, 0)
    expected = {}
    for name, leaf in _carried(second).items():
        earlier = before[name].shape if name in before and before[name].ndim == leaf.ndim else leaf.shape
        shape = [now + more * max(now - then, 0) for now, then in zip(leaf.shape, earlier, strict=True)]
        expected[name] = torch.zeros((), dtype=leaf.dtype).expand(shape)
    return expected


@contextlib.contextmanager
def _nobody_leaves(state: TrainState) -> Iterator[bool]:
    """Inside, tokens pass all blocks of every model that is asked, an objective's among them: which of them a text
    reaches is decided by its tokens. Yields whether there is one that tokens may leave early."""
    kept = getattr(state.objective, "__dict__", {}).values()
    asked = [state.model, *(one for one in kept if isinstance(one, nn.Module))]
    exits = [part for model in asked for part in model.modules() if isinstance(part, Exits)]
    with contextlib.ExitStack() as stack:
        for part in exits:
            stack.enter_context(part.closed())
        yield bool(exits)


def _after(state: TrainState, inputs: Tensor, before: Any, tokens: Tokens) -> Any:
    """What is carried after inputs (B, N): the model's state, or what the objective makes of it."""
    ask = getattr(state.objective, "state_after", None)
    return state.model(inputs, before, tokens).state if ask is None else ask(state.model, inputs, before, tokens)


def _blank(state: TrainState) -> tuple[list[Tensor], Tensor]:
    """Ids of a step's micro-batches, (rows, tokens) each, and the places (tokens,) of one row."""
    train, device = state.train, state.precision.device
    size = train.micro_batch or train.batch_size
    rows = [min(size, train.batch_size - first) for first in range(0, train.batch_size, size)]
    inputs = [torch.zeros(count, train.sequence_length, dtype=torch.long, device=device) for count in rows]
    return inputs, torch.arange(train.sequence_length, device=device)


def _carried(states: Sequence[Any]) -> dict[str, Tensor]:
    """The states of micro-batches by name, as a checkpoint has them."""
    return {f"carry/{index}/{path}": leaf for index, state in enumerate(states) for path, leaf in leaves(state)}


def _compare_carry(tensors: Mapping[str, Tensor], due: Mapping[str, Tensor], *, may_lack_depths: bool) -> None:
    """``may_lack_depths``: a depth that no token has reached yet has no state."""
    for name, value in tensors.items():
        if name not in due:
            raise _wrong("state", name, "is not a state that this model carries")
        same = value.ndim == due[name].ndim and value.shape[:1] == due[name].shape[:1]
        if not same or value.is_floating_point() != due[name].is_floating_point():
            wanted = f"{due[name].dtype} of a shape like {tuple(due[name].shape)}"
            raise _wrong("state", name, f"is {value.dtype} of shape {tuple(value.shape)}; {wanted} is due")
    missing = [name for name in due if name not in tensors]
    if may_lack_depths:
        there = {_depth_of(name) for name in tensors}
        missing = [name for name in missing if _depth_of(name) in there]
    if missing:
        raise _wrong("state", missing[0], "is missing")


def _depth_of(name: str) -> str:
    """``carry/0/3`` and ``carry/0/exits/3`` of what lies below: the micro-batch, and the first number behind it."""
    parts = name.split("/")
    place = next((place for place in range(2, len(parts)) if parts[place].isdigit()), len(parts))
    return "/".join(parts[: place + 1])


def _check_json(snapshot: Snapshot) -> None:
    table = snapshot.json
    if set(table) != set(JSON):
        odd = sorted(set(table) ^ set(JSON))[0]
        raise _wrong("state.json", odd, "is missing" if odd in JSON else "is nothing that a run saves")
    at = table["position"]
    if not isinstance(at, dict) or set(at) != set(COUNTS) or any(type(at[key]) is not int or at[key] < 0 for key in at):
        raise _wrong("state.json", "position", f"must hold the whole numbers {', '.join(COUNTS)}")
    if at["step"] != snapshot.step:
        raise _wrong("state.json", "position.step", f"is {at['step']} in the checkpoint of step {snapshot.step}")
    for key in ("monitors", "objective"):
        if not isinstance(table[key], dict):
            raise _wrong("state.json", key, "is not a table")


def _wrong(part: str, key: str, what: str) -> StorageError:
    return StorageError(f"checkpoint: {part}: {key} {what}")
