"""What a run is after so many steps: everything that a checkpoint holds, part by part; and the rollbacks of a run.

Incidents live in events.jsonl and not in checkpoints: restoring one would forget why it was restored.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from muse_core.contracts import Objective, Verdict
from muse_core.errors import Halted, MuseError, StorageError
from muse_core.model.precision import Precision
from muse_core.model.states import leaves, rebuilt
from muse_core.recipe.schema import Train
from muse_core.storage.checkpoint import Snapshot
from muse_core.training.monitors import MonitorGroup
from muse_core.training.optimizers import Optimizers
from muse_core.training.shards import is_divided, load_whole, whole

MAX_ROLLBACKS = 3
"""Rollbacks within WINDOW steps before the run halts."""
WINDOW = 1000


class Stateful(Protocol):
    """A part of a run that a checkpoint keeps. What ``load_state_dict`` takes is what ``state_dict`` gave, after
    which the next step is the same to the last bit."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


@attrs.define(kw_only=True)
class Position:
    """Where a run is."""

    step: int = 0
    """Data steps done; the next batch is that of this number."""
    accepted: int = 0
    """Optimiser updates done; the schedule follows them."""
    tokens: int = 0
    """Target tokens seen by accepted updates."""
    seconds: float = 0.0
    """Wall clock of the loop over all attempts; no part of the state, so that equal runs have equal hashes."""

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step, "accepted": self.accepted, "tokens": self.tokens}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.step, self.accepted, self.tokens = state["step"], state["accepted"], state["tokens"]


class RandomState:
    """torch's generators of the CPU and of the run's device."""

    def __init__(self, device: torch.device):
        self.device = device

    def state_dict(self) -> dict[str, Tensor]:
        cuda = {"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {}
        return {"cpu": torch.get_rng_state()} | cuda

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


class StreamState:
    """State carried from segment to segment when data are read as streams: one per micro-batch of a step, detached. In
    permuted order there is none: every window starts afresh.

    A proposed state becomes the carried one only when the step is accepted or skipped without damage to it
    (``accept``); a non-finite step keeps the last good state (``reject``).
    """

    def __init__(self, streams: bool, device: torch.device | None = None):
        self.streams = streams
        self.device = device or torch.device("cpu")
        self.states: list[Any] = []
        self._proposed: list[Any] = []

    def of(self, index: int) -> Any:
        """The state that micro-batch ``index`` starts from."""
        return self.states[index] if self.streams and index < len(self.states) else None

    def propose(self, state: Any) -> None:
        if self.streams:
            self._proposed.append(pytree.tree_map_only(Tensor, torch.Tensor.detach, state))

    def accept(self) -> None:
        if self._proposed:
            self.states = self._proposed
        self._proposed = []

    def reject(self) -> None:
        self._proposed = []

    def state_dict(self) -> dict[str, Tensor]:
        """Leaves by path."""
        return dict(leaves(self.states))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        states = rebuilt({path: leaf.to(self.device) for path, leaf in state.items()}) or {}
        self.states = [states[key] for key in sorted(states, key=int)]


@attrs.frozen
class ObjectiveTensors:
    """What an objective keeps in tensors, see ``optional_contracts.KeepsTensors``; most keep nothing."""

    objective: Any
    device: torch.device

    def state_dict(self) -> dict[str, Tensor]:
        return self.objective.tensors() if hasattr(self.objective, "tensors") else {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        if hasattr(self.objective, "load_tensors"):
            self.objective.load_tensors(dict(state), self.device)


@attrs.define(kw_only=True)
class TrainState:
    """Everything that the next step depends on, as parts that are :class:`Stateful`."""

    stage: int
    """Number of the stage that trains."""
    train: Train
    model: nn.Module
    optimizers: Optimizers
    monitors: MonitorGroup
    objective: Objective
    precision: Precision
    stream_state: StreamState
    at: Position = attrs.field(factory=Position)

    @property
    def tensors(self) -> dict[str, Stateful]:
        """Parts of a snapshot's ``state``; names begin with the part."""
        device = self.precision.device
        return {
            "random": RandomState(device), "carry": self.stream_state,
            "objective": ObjectiveTensors(self.objective, device),
        }

    @property
    def values(self) -> dict[str, Stateful]:
        """Parts of a snapshot's JSON."""
        return {"position": self.at, "monitors": self.monitors, "objective": self.objective}

    def snapshot(self, rank: int = 0, size: int = 1, *, pinned: bool = False) -> Snapshot:
        """Copies of every part, on the CPU; of ``size`` ranks each copies its part of the weights and moments, and rank
        0 the rest. ``pinned``: into memory that a GPU writes fastest, and that torch keeps for the next time."""
        named = {
            f"{part}/{name}": value for part, holder in self.tensors.items()
            for name, value in holder.state_dict().items()
        } if rank == 0 else {}
        weights, moments = self.model.state_dict(), self.optimizers.state_dict()
        mine = dealt({"model": weights, "optimizer": moments}, size)[rank]
        return Snapshot(
            step=self.at.step,
            model=_kept_of(weights, {name for part, name in mine if part == "model"}, pinned),
            optimizer=_kept_of(moments, {name for part, name in mine if part == "optimizer"}, pinned),
            state={name: kept(value) for name, value in named.items()},
            # Copied too: what a monitor keeps changes while a checkpoint is written in the background.
            json={"stage": self.stage} | {
                part: copy.deepcopy(holder.state_dict()) for part, holder in self.values.items()
            },
        )

    def load(self, snapshot: Snapshot) -> None:
        """Every part from a snapshot that ``due.check_due`` has found to fit. Raises StorageError naming the part of a
        plugin that does not take it up."""
        load_whole(self.model, snapshot.model)
        self.optimizers.load_state_dict(snapshot.optimizer)
        for part, holder in self.values.items():
            try:
                holder.load_state_dict(snapshot.json[part])
            except MuseError:
                raise
            except Exception as error:  # a plugin's own code, on a state that may be another version's
                why = f"{type(error).__name__}: {error}"
                raise StorageError(f"checkpoint: state.json: {part} cannot be taken up ({why})") from error
        tensors = self.tensors
        for part in ("carry", "objective", "random"):  # what is loaded before may draw
            before = f"{part}/"
            tensors[part].load_state_dict(
                {name.removeprefix(before): value for name, value in snapshot.state.items() if name.startswith(before)}
            )


def _kept_of(tensors: Mapping[str, Tensor], mine: Collection[str], pinned: bool) -> dict[str, Tensor]:
    """Copies of those that are ``mine``. Of divided ones every process gathers every one, in the same order."""
    found = {}
    for name, value in tensors.items():
        if is_divided(value):
            value = whole(value)
        if name in mine:
            found[name] = kept(value, pinned=pinned and value.is_cuda)
    if pinned and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return found


def dealt(parts: Mapping[str, Mapping[str, Tensor]], size: int) -> list[set[tuple[str, str]]]:
    """(part, name) of every tensor, dealt to ``size`` ranks so that all write about as many bytes: the largest first,
    each to the rank that has least."""
    sizes = {
        (part, name): value.numel() * value.element_size() for part, named in parts.items()
        for name, value in named.items()
    }
    found: list[set[tuple[str, str]]] = [set() for _ in range(size)]
    loads = [0] * size
    for key in sorted(sizes, key=lambda key: (-sizes[key], key)):
        rank = loads.index(min(loads))
        found[rank].add(key)
        loads[rank] += sizes[key]
    return found


def kept_weights(model: Any) -> dict[str, Tensor]:
    """Copies of parameters and buffers by name, on the CPU."""
    return {name: kept(whole(value)) for name, value in model.state_dict().items()}


def kept(tensor: Tensor, *, pinned: bool = False) -> Tensor:
    """A copy on the CPU; a ``pinned`` one is complete once the device has come so far."""
    if pinned:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return copy.copy_(tensor.detach(), non_blocking=True)
    return tensor.detach().to("cpu", copy=True).contiguous()


@attrs.frozen(kw_only=True)
class Incident:
    """One rollback."""

    stage: int
    """Number of the stage; each counts its steps from 0."""
    step: int
    """Step at which damage was found."""
    onset: int
    """First step held responsible."""
    target: int
    """Step of the checkpoint that was restored."""
    data: tuple[int, int] = attrs.field(converter=tuple)
    """Data steps (first, end) that the steps from ``onset`` to ``step`` had read; they are skipped from then on."""
    generation: int
    """Number of the restored checkpoint."""
    through: int
    """Newest generation at that time; those after ``generation`` up to it are abandoned."""
    rate: float = 1.0
    """Factor on the learning rate since."""
    reset_moments: bool = False
    """Whether the optimiser's moments started afresh."""


def _incident(row: Mapping[str, Any]) -> Incident:
    """Raises StorageError for a row that does not tell a rollback: passing it over would change which data are read."""
    try:
        found = Incident(**{field.name: row[field.name] for field in attrs.fields(Incident) if field.name in row})
        whole = (found.stage, found.step, found.onset, found.target, *found.data, found.generation, found.through)
        sound = all(type(value) is int for value in whole) and len(found.data) == 2
        sound = sound and isinstance(found.rate, int | float) and isinstance(found.reset_moments, bool)
    except TypeError:
        sound = False
    if not sound:
        raise StorageError(
            f"events.jsonl: the row of sequence {row.get('sequence')} is a rollback that does not say what was undone "
            "- restore the file from a copy"
        )
    return found


class Incidents:
    """The rollbacks of one stage of a run so far."""

    def __init__(self, stage: int = 0, events: Iterable[Mapping[str, Any]] = (), *, most: int = MAX_ROLLBACKS):
        """``events``: rows of events.jsonl, of which the rollbacks of this stage count."""
        self.most = most
        self.known = [_incident(row) for row in events if row.get("event") == "incident" and row.get("stage") == stage]

    @property
    def quarantine(self) -> tuple[tuple[int, int], ...]:
        """Ranges (first, end) of data steps that are passed over, in the order of discovery."""
        return tuple(incident.data for incident in self.known)

    @property
    def rate(self) -> float:
        """Factor on the learning rate after all of them."""
        return math.prod(incident.rate for incident in self.known)

    def recent(self, step: int) -> int:
        """How many were found within the WINDOW steps before ``step``."""
        return sum(step - incident.step < WINDOW for incident in self.known)

    def resets(self, generation: int) -> bool:
        """Whether the last rollback to this generation began with fresh moments."""
        return next((one.reset_moments for one in reversed(self.known) if one.generation == generation), False)

    def add(self, incident: Incident, verdict: Verdict) -> None:
        """Remember a rollback. Raises Halted when it is one too many: a run that keeps breaking has a cause that
        skipping data does not cure."""
        if self.recent(incident.step) >= self.most:
            raise Halted(
                f"halted at step {incident.step}: {self.most} rollbacks within {WINDOW} steps did not help "
                f"(last: {verdict.monitor}: {verdict.reason}); lower train.learning_rate or look at the data"
            )
        self.known.append(incident)
