"""Protocols of what surrounds the model in a run: optimizers, schedules, tokenizers and sinks. ``contracts`` has them
too, with those of the kinds that compute."""

from __future__ import annotations

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
        update depends on besides the gradient and the groups: checkpoints keep this and nothing else."""
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
