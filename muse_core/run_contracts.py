"""What surrounds the model in a run: optimizers, schedules, tokenizers, monitors and sinks. ``contracts`` has these
names too, with those of the kinds that compute."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer as TorchOptimizer

    from muse_core.data.tokenizer import Tokenizer


class TrainedParameter(NamedTuple):
    """What an optimizer is given of a parameter."""

    tensor: Tensor
    """The real ``torch.nn.Parameter`` itself, on the run's device, at least fp32."""
    role: str
    """matrix, embedding, vector or dynamics, as ``muse_core.model.roles`` reads them off names and owners."""


class Optimizer(Protocol):
    """An update rule, made of optimisers as torch has them. ``context.learning_rate`` is the peak rate and
    ``context.weight_decay`` the decoupled decay that the recipe's [train] asks for; ``context.decays(role)`` says
    whether parameters of a role are decayed."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def build(self, parameters: Mapping[str, TrainedParameter]) -> Sequence[TorchOptimizer]:
        """Optimisers that hold each of these parameters once, stepped in this order. The ``lr`` of a group is its peak
        rate: before every step the core sets it to the schedule's share of that."""
        ...

    def kept(self, optimizer: TorchOptimizer, parameter: Tensor) -> Mapping[str, Tensor]:
        """What ``optimizer.state[parameter]`` holds once ``optimizer`` has updated the parameter: name → a tensor of
        that shape, type and device, the parameter itself where they are its own. Tensors only, and everything that an
        update depends on besides the gradient and the groups: checkpoints keep this and nothing else. It is asked
        before the first update too, when the state is empty, so it answers by the parameter, not by what is held."""
        ...


class Schedule(Protocol):
    """The learning rate over updates, as a share of the peak rate. ``context.steps`` is the number of updates that the
    schedule spans, ``context.warmup_steps`` and ``context.final_rate`` are those of the recipe's [train]."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def factor(self, updates: int) -> float:
        """Share of the peak rate, 0 to 1, at the update after ``updates`` of them: a pure function of that number, also
        for numbers beyond the span. It has no state, so that a resumed run goes on with the same rates."""
        ...


class TokenizerMaker(Protocol):
    """Makes the ``muse_core.data.tokenizer.Tokenizer`` that options describe. What its ``to_json`` writes, a JSON table
    with the component's name as ``kind``, stands in every run's directory; ``restore`` reads it there."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def identity(self) -> str:
        """Names everything besides the training text that decides the tokens: sizes, digests of files, versions of
        libraries. Encoded text is kept under it."""
        ...

    def make(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer; ``texts``, the training split, are read only where it learns from them."""
        ...

    @staticmethod
    def restore(table: dict[str, Any]) -> Tokenizer:
        """The tokenizer that ``to_json`` described. ValueError, in a sentence, for anything else."""
        ...


class Action(enum.IntEnum):
    """What a monitor asks for; of several the strongest wins."""

    CONTINUE = 0
    SKIP = 1
    ROLLBACK = 2
    HALT = 3


class Remedy(NamedTuple):
    """What a rollback does besides going back and passing over the data since the onset."""

    margin: int = 0
    """Least number of steps from target to onset; when no certified checkpoint is so early, the oldest is taken."""
    older: int = 0
    """Certified checkpoints to pass over for an older target, as far as there are any."""
    window: int = 1
    """Factor on the data that are passed over; the window grows on both sides, never to before the target."""
    rate: float = 1.0
    """Factor on the learning rate from then on."""
    reset_moments: bool = False
    """Start the optimiser's moments afresh."""


class Verdict(NamedTuple):
    """A monitor's decision with its reason in a sentence."""

    action: Action = Action.CONTINUE
    reason: str = ""
    monitor: str = ""
    onset: int | None = None
    """First step that the monitor holds responsible; a rollback goes to a certified checkpoint before it."""
    remedy: Remedy = Remedy()
    """Of several monitors that ask for a rollback the strongest of each."""


class Monitor:
    """Watches the loop. A subclass overrides what it needs; a class with all of these methods does as well. Judges are
    pure functions of globally reduced numbers, so ranks never disagree."""

    def __init__(self, options: Any, context: Any) -> None:
        self.options = options
        self.name: str = context.name
        """Its numbers stand in the records as ``<name>/<number>``."""

    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, Tensor]:
        """On device, without synchronisation. Moments, in this order: ``"gradients"`` (values: parameter name →
        gradient, which may be changed in place); ``"norms"`` (``names``: the P parameter names, ``norms``: (P,) float64
        2-norms of their gradients as they are now, not finite where a gradient is not); ``"step"`` (no values: the
        clock). Of several ranks the largest counts (``_min``: the least); each has its part of weights. Default {}."""
        return {}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        """Before the optimiser step, with every reduced number of this step, the monitor's own under
        ``<monitor>/<name>``; ``rollbacks`` is how many there were within the last 1,000 steps. By default: go on."""
        return Verdict()

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        """After ``step`` steps, before a checkpoint: what it changes in ``state_dict`` is in it. By default no."""
        return False

    def probe(self, model: Any) -> dict[str, float]:
        """On all ranks, in eval mode under no_grad with the random state kept; the results of rank 0 are judged."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must remember, as JSON. By default nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes what ``state_dict`` gave."""


class VetoesCertification(Protocol):
    """Optional for monitors: a say in which checkpoints a rollback may go back to."""

    def veto_certification(self, step: int) -> str | None:
        """Why the checkpoint after ``step`` steps may not be certified, in a sentence, or None. The core itself
        certifies none with a value that is not finite."""
        ...


class ChecksModel(Protocol):
    """Optional for monitors: whether there is something to watch, asked before the first step."""

    def check_model(self, model: Any) -> None:
        """Raises RecipeError, in a sentence with what to do, where the model has nothing of what the options name."""
        ...


class Sink(Protocol):
    """Where the numbers of a run go besides metrics.jsonl. ``context`` says which run: ``run``, its directory (Path),
    ``name``, ``seed``, ``recipe``, the resolved table, and ``attempt``, from 1: a resumed run opens its sinks again.

    What it raises is said and recorded once, and it is asked no more: a sink never ends a run.
    """

    def __init__(self, options: Any, context: Any) -> None: ...

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl, as the reference of metrics describes them."""
        ...

    def event(self, row: Mapping[str, Any]) -> None:
        """A row of events.jsonl: warnings, rollbacks, interruptions."""
        ...

    def end(self, summary: Mapping[str, Any]) -> None:
        """The content of summary.json, once, when the run has come to its end."""
        ...

    def close(self) -> None:
        """At the end of the process, also after an interruption or an error."""
        ...
