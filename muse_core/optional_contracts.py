"""Optional protocols of stages, objectives and models, beside those of ``contracts``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class OwnPlan(Protocol):
    """Optional for stages: a plan of their own within the one loop."""

    def settings(self, train: Any) -> Any:
        """The recipe's table ``[train]`` as this stage wants it, such as another number of steps."""
        ...

    def batches(self, run: Any) -> Any:
        """In place of the run's training data: a ``muse_core.data.batches.TrainingData``.
        ``run`` is the run's directory (Path), for what the stage keeps on disk. Asked before the weights are loaded:
        what depends on them must wait for the first batch."""
        ...


class Measures(Protocol):
    """Optional for stages: measures of the model as it is when the stage ends."""

    def measured(self) -> dict[str, Any]:
        """Title → rows, lists of dicts of numbers and text; kept in the run's evaluation-<number of the stage>.json."""
        ...


class KeepsTensors(Protocol):
    """Optional for objectives: tensors that checkpoints keep besides ``state_dict``, which is JSON."""

    def tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: dict[str, Tensor], device: Any) -> None: ...


class Ends(Protocol):
    """Optional for objectives: an end before the planned number of steps."""

    finished: bool
    """Read after each step; when true the stage ends as after its last planned step. Depends on ``state_dict`` and
    ``tensors`` alone, so that a resumed run ends where it would have."""


class Extends(Protocol):
    """Optional for schedules: that the first rates do not depend on the length of the run."""

    def unchanged_until(self) -> int:
        """First updates whose rates every longer schedule shares. ``muse-run --extend`` of a run that has done no more
        of them gives it the schedule of the longer run; of other runs it goes on with the last rate."""
        ...


class NeedsPackages(Protocol):
    """Optional for the options of sinks: packages that are asked for before a run is begun. As a class attribute
    without an annotation it is no option."""

    packages: Mapping[str, str]
    """Name to import → what to install with pip."""


class Checks(Protocol):
    """Optional for models: measures of their own in ``muse diagnose``."""

    def checks(self, setup: Any, run: Any) -> dict[str, dict[str, float | str]]:
        """Title of a table → name → number, or text with numbers. ``setup`` holds this model as trained, text and
        recipe; ``run`` is the run's directory (Path). Called in evaluation mode without gradients."""
        ...


class Sharded(Protocol):
    """Optional for layers, also nested ones: a memory that starts afresh every so many tokens, on the grid of the
    stream's positions. The exit gate on shards calls each such module as a layer."""

    shard: int
    """Tokens of a shard."""

    def shard_start(self) -> list[Tensor]:
        """The learned tensors that every shard starts from, if any: a gradient reaches each from every shard."""
        ...
