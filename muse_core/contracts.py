"""What passes between the parts: named tuples of tensors and the protocols of every kind of component.

Letters: B batch rows, N tokens, D width, H heads, K and M key and value width of a head, E experts.
Everything a layer produces is returned. Parameters, buffers and state are real and at least fp32
(``promote_types(x.dtype, float32)``); a complex quantity crosses a contract as a trailing axis of 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from muse_core.run_contracts import (
    Action,
    ChecksModel,
    Monitor,
    Optimizer,
    Remedy,
    Schedule,
    Sink,
    TokenizerMaker,
    TrainedParameter,
    Verdict,
    VetoesCertification,
)

__all__ = [
    "Action", "ChecksModel", "Monitor", "Optimizer", "Remedy", "Schedule", "Sink", "TokenizerMaker", "TrainedParameter",
    "Verdict", "VetoesCertification",
]
FORMER_NAMES = {"Step": "LayerOutput", "Output": "ModelOutput", "Absorbs": "UpdatesStatistics",
                "Doubts": "VetoesCertification"}
"""Of muse-core 0.1, for plugins that were written for it."""

if TYPE_CHECKING:
    from torch import Generator, Tensor

State = Any
"""Dicts of real tensors, nested, or None for the start. A checkpoint does not give back what holds no tensor."""


class Tokens(NamedTuple):
    """About the tokens, not of them."""

    positions: Tensor
    """(B, N) int: position within the document."""
    offset: int = 0
    """Stream position of token 0 modulo the least common multiple of the periods; 0 in permuted training. It may decide
    what a layer does only by where a multiple of a period in its options falls: generation replays one recorded call
    wherever these places are the same."""
    resets: Tensor | None = None
    """(B, N) bool: a document starts here. None: no document starts inside, not even at token 0 of carried state."""
    valid: Tensor | None = None
    """(B, N) bool, right padding: False where a row has ended. None: all valid."""

    def starts(self) -> Tensor | None:
        """(B, N) bool: ``resets`` among the valid tokens, for padding starts nothing. None where ``resets`` is."""
        return self.resets if self.resets is None or self.valid is None else self.resets & self.valid


class LayerOutput(NamedTuple):
    """What a layer returns."""

    update: Tensor
    """(B, N, D): the stack adds it to the residual stream."""
    state: State
    signals: dict[str, Tensor] = {}
    """(B, N, …): exactly the names in ``context.publish``."""
    losses: dict[str, Tensor] = {}
    """Scalars, already weighted, summed over valid tokens. The objective scales them by targets / valid tokens, so that
    a weight per token means the same in text and in tasks where few labels count."""
    metrics: dict[str, Tensor] = {}
    """Detached scalars; reduced over micro-batches and ranks by suffix ``_sum``, ``_min``, ``_max``, otherwise mean
    weighted by tokens. What a nested component measures stands under its module's name, as ``snr/signal_to_noise``."""


class Period(NamedTuple):
    """What happened to fast weights between ``before`` and ``after`` of a filter; sums restart at a reset."""

    log_decay: Tensor
    """(B, H): Σ g over the period."""
    write_scale: Tensor
    """(B, H): Σ e^{2(c_end − c_i)} β_i² ‖k_i‖² ‖v_i‖² / (K M), the variance a noise write would leave per entry."""
    reset: Tensor
    """(B,) bool: a document started in this period; then ``before`` is zero and the row's filter state restarts."""


class Routing(NamedTuple):
    """Which experts a token goes to."""

    expert: Tensor
    """(B, N, k) int; unused slots −1."""
    weight: Tensor
    """(B, N, k); unused slots 0."""
    logits: Tensor
    """(B, N, E)."""
    losses: dict[str, Tensor] = {}
    metrics: dict[str, Tensor] = {}


class ModelOutput(NamedTuple):
    """What a model returns."""

    hidden: Tensor
    """(B, N, …): input of the head; ``model.logits(hidden)`` gives (B, N, vocabulary)."""
    state: State
    losses: dict[str, Tensor]
    metrics: dict[str, Tensor]

    def __repr__(self) -> str:  # the values of a state would fill pages
        return f"<ModelOutput: hidden {tuple(self.hidden.shape)} {self.hidden.dtype}, {len(self.metrics)} metrics>"


class Batch(NamedTuple):
    """A training or evaluation batch."""

    inputs: Tensor
    """(B, N) int64 token ids."""
    labels: Tensor
    """(B, N) int64: the next token."""
    loss_mask: Tensor
    """(B, N) bool: the label belongs to the loss (false for padding)."""
    tokens: Tokens
    extra: Mapping[str, Tensor] = {}
    """(B, …) by name: what a stage's own batches hand to its objective besides."""
    targets_per_token: float | Tensor | None = None
    """Targets that count over valid tokens, of the whole batch that this is a part of; None: of this batch itself."""
    target_places: Tensor | None = None
    """(n,) int64: places of B·N, all whose labels count and some more, where those are few; None: all places."""


class Result(NamedTuple):
    """What an objective returns for one micro-batch."""

    total: Tensor
    """Scalar: sum over counted tokens, in nats, of everything to minimise. The loop divides by the global count."""
    losses: dict[str, Tensor]
    """Detached scalar sums by name, for the records; ``"cross_entropy"`` among them for language models."""
    metrics: dict[str, Tensor]
    state: State


class KernelRequest(NamedTuple):
    """What a layer asks of a kernel backend."""

    operation: str
    device: str
    """``"cpu"`` or ``"cuda"``."""
    dtype: str
    """``"float32"``, ``"bfloat16"``, ``"float64"``: dtype of the tensors that will arrive."""
    sizes: Mapping[str, int] = {}
    """Head sizes and the like, such as ``{"key": 64, "value": 64}``."""
    needs: frozenset[str] = frozenset({"gradient"})
    """Among gradient, resets, group, double_backward."""


class Document(NamedTuple):
    """One document of a source."""

    text: str
    name: str
    """Where it came from, for messages: a file name, or dataset and row."""
    split: str | None = None
    """``"train"``, ``"validation"`` or ``"test"`` when the source fixes it; None leaves it to the seeded shuffle."""
    source: str | None = None
    """Component that it comes from, for comparisons by source; None is filled in with the name of its source."""


class Layer(Protocol):
    """A residual sub-layer, memory layers too: y = x + update(norm(x)). A torch module."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def forward(self, x: Tensor, state: State, signals: dict[str, Tensor], tokens: Tokens) -> LayerOutput:
        """x (B, N, D), already normalised, N ≥ 1; ``state`` None means the start of a sequence."""
        ...


class UpdatesStatistics(Protocol):
    """Optional: moving averages, bins, schedules. ``fills_buffers = True``: changes its own buffers alone, in place."""

    def update_statistics(self, metrics: Mapping[str, float], progress: float) -> None:
        """Called once per accepted optimiser step, after reduction; ``metrics`` are the component's own, without
        prefix, whether a layer or nested in one; ``progress`` = accepted / planned steps in [0, 1]."""
        ...


class Potential(Protocol):
    """A term of the Hamiltonian's diagonal; those listed are summed. A torch module; ``context.heads`` is H."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Returns V and Γ ≥ 0, each (B, N, H), at least fp32."""
        ...


class Filter(Protocol):
    """Acts on fast weights (B, H, K, M) once a period, in absolute positions. A torch module."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def forward(
        self, before: Tensor, after: Tensor, period: Period, state: State
    ) -> tuple[Tensor, State, dict[str, Tensor]]:
        """Returns the filtered weights, the filter's state and metrics; ``state`` None at the start."""
        ...


class Router(Protocol):
    """Chooses experts per token. A torch module; ``context.experts`` is E.

    Its options may define ``refuse(experts) -> str | None``, why it cannot choose among so many, which is then an error
    of the recipe with its line. The module may say ``fills_slots = True``, that no slot is ever unused, and
    ``expected_slots``, how many a token uses on average, for the count of FLOPs.
    """

    def __init__(self, options: Any, context: Any) -> None: ...

    def forward(self, x: Tensor, signals: dict[str, Tensor], tokens: Tokens) -> Routing: ...


class Model(Protocol):
    """A causal language model. A torch module."""

    vocabulary_size: int

    def __init__(self, options: Any, context: Any) -> None: ...

    def forward(self, inputs: Tensor, state: State = None, tokens: Tokens | None = None) -> ModelOutput:
        """``inputs``: ids (B, N) or embeddings (B, N, D)."""
        ...

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, N) → embeddings (B, N, D): ``forward`` of either gives the same. The causality check and the gradient
        reach differentiate with respect to them."""
        ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Objective(Protocol):
    """What a stage minimises."""

    def __call__(self, model: Any, batch: Batch, state: State) -> Result: ...

    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Stage(Protocol):
    """Configures the one loop: an objective, never a second loop. A stage with the attribute ``partial = True`` may
    finish with some of the new model's weights; the rest start as the new recipe says, and a table tells which."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def objective(self, model: Any, data: Any) -> Objective | None:
        """None: the stage does not train (convert, evaluate)."""
        ...

    def trainable(self, name: str) -> bool:
        """Whether the parameter of this name is trained in this stage."""
        ...

    def finish(self, model: Any) -> tuple[Any, dict[str, Tensor]] | None:
        """A new recipe table and weights when the stage changes the architecture; None keeps both."""
        ...


class Initializer(Protocol):
    """Fills the parameters whose names match. Called with full fp32 tensors on the CPU."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def __call__(self, tensor: Tensor, *, role: str, generator: Generator) -> Tensor:
        """Returns a tensor of the same shape; role is matrix, embedding, vector or dynamics."""
        ...


class KernelBackend(Protocol):
    """Implements operations of muse-kernels. ``rank`` orders the choice under ``kernels.backend = "auto"``: the
    highest-ranked backend that does not refuse wins; two of equal rank that both serve a request are an error."""

    rank: int

    def __init__(self, options: Any, context: Any) -> None: ...

    def operations(self) -> dict[str, str]:
        """operation → ``"module:function"``, each with the signature of its muse_kernels namesake without backend."""
        ...

    def refuse(self, request: KernelRequest) -> str | None:
        """Why this request cannot be served, in a sentence, or None."""
        ...


class Source(Protocol):
    """Where text comes from."""

    def __init__(self, options: Any, context: Any) -> None: ...

    def fingerprint(self) -> str:
        """Identifies the content: equal fingerprints give equal documents. Cheap where it can be (file digests)."""
        ...

    def documents(self) -> Iterator[Document]:
        """Documents in a fixed order."""
        ...


class TaskSource(Protocol):
    """A source that has no text but makes examples, which a tokenizer and a division into splits would not fit."""

    vocabulary_size: int
    # Optional: chance, a float: nats per counted token of a guess that knows the task and not the example. A run says
    # when its model is not better.

    def __init__(self, options: Any, context: Any) -> None: ...

    def fingerprint(self) -> str:
        """Identifies the task: equal fingerprints give equal examples."""
        ...

    def examples(self, split: str, indices: Any, length: int) -> Batch:
        """The examples of these numbers, an int64 array (B,), each of ``length`` tokens: a pure function of split
        ("train", "validation", "test"), number and length. ``loss_mask`` says which labels belong to the loss."""
        ...


def __getattr__(name: str) -> Any:
    if name in FORMER_NAMES:
        raise ImportError(
            f"muse_core.contracts.{name} is called {FORMER_NAMES[name]} since muse-core 0.2; "
            "docs/guide/how-to/upgrade.md lists every name that changed"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
