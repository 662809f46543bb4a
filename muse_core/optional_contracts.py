"""Optional protocols of stages, objectives and models, beside those of ``contracts``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Refuses(Protocol):
    """Optional for stages: a word before a new run is begun."""

    def refuse(self) -> str | None:
        """Why this stage cannot do what its options ask of the model that the run begins with, in a sentence, or None.
        Then nothing is written."""
        ...


class KeepsTensors(Protocol):
    """Optional for objectives: tensors that checkpoints keep besides ``state_dict``, which is JSON."""

    def tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: dict[str, Tensor], device: Any) -> None: ...


class Carries(Protocol):
    """Optional for objectives: what is carried from step to step where that is more than the model's own state."""

    def state_after(self, model: Any, inputs: Tensor, state: Any, tokens: Any) -> Any:
        """What ``Result.state`` is after inputs (B, N), without the loss; a checkpoint is compared with it."""
        ...


class Ends(Protocol):
    """Optional for objectives: an end before the planned number of steps."""

    finished: bool
    """Read after each step; when true the stage ends as after its last planned step. Depends on ``state_dict`` and
    ``tensors`` alone, so that a resumed run ends where it would have."""


class Undivided(Protocol):
    """Optional for the options of layers and filters, which without it have whole rows of tokens on every process."""

    def undivided(self) -> str | None:
        """Why the layer cannot compute where the tokens of a row are divided among processes
        (``parallel.context``), as half a sentence; None where it can: it treats every token by itself, or reaches
        others through kernels of ``muse_core.model.across`` alone."""
        ...


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


class HasHamiltonian(Protocol):
    """Optional for layers: the tridiagonal Hamiltonian that the layer makes of its input (mathematics §1)."""

    def hamiltonian(self, x: Tensor, signals: dict[str, Tensor], tokens: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of ``forward`` without the state → V and Γ ≥ 0 (B, N, H), and |l| (H,); differentiable."""
        ...


class Sharded(Protocol):
    """Optional for layers, also nested ones: a memory that starts afresh every so many tokens, on the grid of the
    stream's positions. The exit gate on shards calls each such module as a layer."""

    shard: int
    """Tokens of a shard."""

    def shard_start(self) -> list[Tensor]:
        """The learned tensors that every shard starts from, if any: a gradient reaches each from every shard."""
        ...


class Periods(Protocol):
    """Optional for models: the periods of their parts, so that a recorded step of generation serves every place between
    two ends of a period; without it a step is recorded for each place on the grid."""

    periods: tuple[int, ...]
    """In tokens; ``model.plan.periods`` finds them among options."""


class Simplifies(Protocol):
    """Optional for models: a shorter way to compute what a recorded step of generation computes."""

    def simplified(self, graph: Any, inputs: Sequence[Tensor]) -> Any:
        """A ``torch.fx.GraphModule`` of tensor operations, as ``muse_core.model.recording`` makes it, and inputs that
        it was recorded with → one that gives the same, up to rounding. It is checked against the layers' own code."""
        ...
