"""The causality gate: before step 1 of every run, no output may depend on a later token or on another row.

Three checks (contracts: causality gate). The exact one perturbs embeddings of a float64 copy and allows 1e-9, with and
without document starts, with carried state, and as in training. The one in the run's own precision and kernels changes
later ids of a real batch and asks for equal bits. The third, ``causality_gradients``, follows gradients on that batch.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from muse_core.contracts import LayerOutput, Routing, State, Tokens
from muse_core.evaluation.held_out import undisturbed
from muse_core.evaluation.not_finite import NotFinite, not_finite
from muse_core.evaluation.recording import recording, tensors_of
from muse_core.model.precision import Precision
from muse_core.model.seeding import set_seed

TOLERANCE = 1e-9
PERTURBATION = 10.0
TOLERANCES = {torch.float64: TOLERANCE, torch.float32: 1e-3, torch.bfloat16: 0.25}
"""Of the exact check by the widest precision that a model has, relative to its outputs, for a change of 10."""
SEED = 20_000
"""Of what the model draws during a check, the same in every pass."""
ROUTED_RUNS = 4
"""Later halves with which a routed model is run: a tie has two sides, so that two of three runs agree about one."""
REPEATS = 3
"""Further passes with equal input, where an output of a model without a router moved."""


@attrs.frozen(kw_only=True)
class Leak:
    """A dependence that must not be."""

    consequence = "Training would learn to read its own targets"

    kind: str
    """later token | other row | own precision"""
    layer: str
    """The first layer or router that said something else, or ``the head`` when none did."""
    position: int
    """Position that was changed."""
    affected: int
    """Earliest position whose output moved."""
    size: float
    """Largest change of the output there."""
    how: str = ""
    """How the model was called."""

    def __str__(self) -> str:
        cause = "another row of the batch" if self.kind == "other row" else f"the later token {self.position}"
        return (
            f"causality gate: {self.layer} lets the output at token {self.affected} depend on {cause} "
            f"(change {self.size:.1e}, check: {self.kind}{', ' if self.how else ''}{self.how})"
        )


def probe_length(periods: tuple[int, ...]) -> int:
    """Tokens that the exact check reads: longer than two of the longest period, and at least 24."""
    return max(24, 2 * max(periods, default=0) + 3)


def probe_positions(length: int, periods: tuple[int, ...]) -> list[int]:
    """Positions that are perturbed: both ends, the middle and either side of every period edge."""
    chosen = {0, length // 2, length - 1}
    for period in periods:
        chosen |= {edge for edge in (period - 1, period, period + 1) if 0 < edge < length}
    return sorted(chosen)


class Variant(NamedTuple):
    """A way in which a model is called."""

    name: str
    resets: str
    """none: no tensor; false: a tensor that marks no start; inside: a document starts in the middle."""
    training: bool
    """In training mode and with gradients enabled, as in the loop."""
    carried: bool = False
    """From the state that a first call returned, not from the start of a sequence."""


VARIANTS = (
    Variant("without document starts", "none", False),
    Variant("with resets all False", "false", False),
    Variant("with a document start inside", "inside", False),
    Variant("in training", "inside", True),
    Variant("with carried state", "false", False, carried=True),
)


def exact_leak(
    model: nn.Module, width: int, periods: tuple[int, ...], *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Leak | NotFinite | None:
    """Check a float64 model on the CPU, or one of ``dtype`` where it is; its near-zero parameters are replaced by
    random values, so that a dead branch cannot hide a leak. The model is changed and should be thrown away."""
    generator = torch.Generator().manual_seed(seed)
    _wake(model, generator)
    tolerance = TOLERANCES[dtype]
    length = probe_length(periods)
    positions = probe_positions(length, periods)
    device = next(model.parameters()).device
    base = torch.randn(1, length, width, dtype=torch.float64, generator=generator)
    noise = PERTURBATION * torch.randn(len(positions), width, dtype=torch.float64, generator=generator)
    prefix = torch.randn(1, length, width, dtype=torch.float64, generator=generator)
    few = sorted({length // 2, length - 1})
    for number, variant in enumerate(VARIANTS):
        # Row 0 stays as it is; each of the others is changed at one position.
        tried = positions if variant.training or not number else few
        changed = base.repeat(1 + len(tried), 1, 1).to(device, dtype)
        for row, (position, more) in enumerate(zip(tried, noise), 1):
            changed[row, position] += more.to(device, dtype)
        # Of the same shape: what is drawn in training depends on it, and so does how a product of matrices rounds,
        # which a resonance amplifies (by 1 / (Γ + η) a layer) beyond any tolerance that a leak does not pass too.
        unchanged = base.repeat(len(changed), 1, 1).to(device, dtype)
        with as_compared(model, variant.training):
            states: list[State] = [None, None]
            if variant.carried:
                for index, rows in enumerate((unchanged, changed)):
                    set_seed(SEED)
                    before = prefix.expand_as(rows).to(device, dtype)
                    states[index] = model(before, None, document_tokens(rows, "none")).state
            reference, said_before = _observe(model, unchanged, states[0], document_tokens(unchanged, variant.resets))
            values = {name: one.values for name, one in said_before.items()}
            if (broken := not_finite(reference, values, variant.name)) is not None:
                return broken
            together, said = _observe(model, changed, states[1], document_tokens(changed, variant.resets))
        for row, position in ((0, length), *enumerate(tried, 1)):
            kind = "later token" if row else "other row"
            outputs = together[row], reference[row]
            if _moved(outputs[0][:position], outputs[1][:position], tolerance):
                both = (row, row)
                return _leak(kind, variant.name, position, outputs, said, said_before, row=both, tolerance=tolerance)
    return None


@contextlib.contextmanager
def as_called(model: nn.Module, training: bool) -> Iterator[None]:
    """Evaluation mode without gradients, or training mode with them; modes, random state and buffers come back."""
    if not training:
        with undisturbed(model):
            yield
        return
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    try:
        with undisturbed(model), torch.enable_grad():
            model.train()
            yield
    finally:
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name in buffers:
                    value.copy_(buffers[name])


@contextlib.contextmanager
def as_compared(model: Any, training: bool) -> Iterator[None]:
    """``as_called``, for outputs of several passes that are compared. In training with dropout no token leaves early
    inside: how many are left of all rows decides which numbers are drawn for each, so that outputs would change with
    other tokens by what is drawn alone."""
    exits = getattr(model, "exits", None)
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    closed = exits.closed() if training and drops and exits is not None else contextlib.nullcontext()
    with as_called(model, training), closed:
        yield


def document_tokens(x: Tensor, resets: str) -> Tokens:
    """About x (B, N, …): one document in a row, or two with a start in the middle; ``resets`` as in ``Variant``."""
    count, length = x.shape[:2]
    positions = torch.arange(length, device=x.device).expand(count, -1)
    if resets == "none":
        return Tokens(positions)
    starts = torch.zeros_like(positions, dtype=torch.bool)
    if resets == "inside":
        starts[:, length // 2] = True
        positions = torch.where(positions < length // 2, positions, positions - length // 2)
    return Tokens(positions, resets=starts)


def own_precision_leak(
    model: Any,
    vocabulary_size: int,
    length: int,
    precision: Precision,
    *,
    seed: int = 0,
    routed: bool = False,
    ids: Tensor | None = None,
    tokens: Tokens | None = None,
    training: bool = False,
    period: int | None = None,
    places: Sequence[int] | None = None,
    judges_diverged: bool = True,
    agreed: Callable[[bool], bool] = bool,
) -> Leak | NotFinite | None:
    """Check the model as it will run: change the later half of the ids; outputs before must keep their bits. Where a
    repeat with the same input already differs, or tokens are routed (data-dependent shapes), the allowance is the
    difference of the repeat plus rounding.

    ``ids`` (B, N) and ``tokens`` of a batch; by default two rows of ``length`` random ids in one document each.
    ``training``: in training mode with gradients enabled and one random state for all passes. ``period``: from the
    state that a first call with the same ids returned; ``tokens`` then stand behind it in a stream of this period.
    ``places``: first tokens of later parts to change, one after the other, instead of the half. ``judges_diverged``:
    without it FloatingPointError is raised where a pass has outputs that are no finite numbers. ``agreed``: whether
    what one process found is so on any of those that compute together, which must make equal passes.

    Rounding may also decide a router's tie otherwise, which moves a token by more than rounding, but to one of few
    places. A routed model is therefore run with several later halves, and a token has moved when no two of them agree.
    """
    generator = torch.Generator().manual_seed(seed)
    if ids is None:
        ids = torch.randint(vocabulary_size, (2, length), generator=generator)
    ids = ids.to(precision.device)
    places = (ids.shape[1] // 2,) if places is None else places
    places = [place for place in places if 0 < place < ids.shape[1]]
    if not places:
        return None  # rows of one token have no earlier one
    state: State = None
    if period is not None:
        with as_compared(model, training), precision():
            state, tokens = carried(model, ids, tokens, period)

    def hidden(place: int, shift: int) -> Tensor:
        set_seed(SEED)
        return model(_later(ids, place, shift, vocabulary_size), state, tokens).hidden.detach().double()

    halves = max(2, min(ROUTED_RUNS, vocabulary_size)) if routed else 2  # equal ones would agree
    with as_compared(model, training), precision():
        first = hidden(0, 0)
        again = hidden(0, 0)
        floor = (first - again).abs().max().item()
        for place in places:
            runs = [first, *(hidden(place, shift) for shift in range(1, halves))]
            if not judges_diverged and agreed(not all(bool(one.isfinite().all()) for one in (again, *runs))):
                raise FloatingPointError("outputs are no finite numbers")
            pairs = [(a - b)[:, :place].abs().amax((0, 2)) for a, b in combinations(runs, 2)]
            difference = torch.stack(pairs).amin(0)
            if agreed(not routed and floor == 0 and difference.max().item() > 0):
                # What differs from pass to pass once in a while need not have done so in two.
                floor = max(floor, *((first - hidden(0, 0)).abs().max().item() for _ in range(REPEATS)))
            allowed = floor + (2**-7 * first.abs().max().item() if routed or floor > 0 else 0.0)
            if agreed(not math.isfinite(floor) or not difference.max().item() <= allowed):
                break
        else:
            return None
    affected = int((~(difference <= allowed)).int().argmax())
    with as_compared(model, training), precision():
        said = [_observe(model, _later(ids, place, shift, vocabulary_size), state, tokens)[1] for shift in (0, 1)]
    kind = ", ".join(["own precision", *["in training"] * training, *["with carried state"] * (period is not None)])
    broken = not_finite(first, {name: one.values for name, one in said[0].items()}, kind)
    broken = broken or not_finite(again, {"the model": {"hidden": again}}, f"{kind}, in one of two equal passes")
    return broken or Leak(
        kind=kind,
        layer=_first_layer(
            said[1], said[0], [(row, row) for row in range(len(ids))], place, 2**-7 if allowed else 0.0
        ),
        position=place,
        affected=affected,
        size=difference.max().item(),
    )


def _later(ids: Tensor, place: int, shift: int, vocabulary_size: int) -> Tensor:
    """``ids`` (B, N) with every id from ``place`` on another, for a ``shift`` that is no multiple of the vocabulary."""
    changed = ids.clone()
    changed[:, place:] = (ids[:, place:] + shift) % vocabulary_size
    return changed


def carried(model: Any, inputs: Tensor, tokens: Tokens | None, period: int) -> tuple[State, Tokens]:
    """The state after ``inputs`` (B, N, …), without its history, and ``tokens`` as of the same tokens once more behind
    them, in a stream of this period."""
    set_seed(SEED)
    state = pytree.tree_map_only(Tensor, Tensor.detach, model(inputs, None, tokens).state)
    if tokens is None:
        tokens = Tokens(torch.arange(inputs.shape[1], device=inputs.device).expand(inputs.shape[:2]))
    return state, tokens._replace(offset=(tokens.offset + inputs.shape[1]) % period)


@torch.no_grad()
def _wake(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        if parameter.numel() and parameter.abs().max() < 1e-3:
            noise = 0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
            parameter.add_(noise.to(parameter))


class Seen(NamedTuple):
    """What a layer or a router said, and of which tokens: those that left early are not among them."""

    values: dict[str, Tensor]
    """(B, n, …) each: the update or the logits, and every signal."""
    tokens: Tokens
    length: int
    """Tokens N of the call."""

    def of(self, row: int, before: int) -> dict[str, Tensor]:
        """(m, …): of the tokens that the layer saw of a row among the first ``before`` of the sequence."""
        kept = torch.zeros_like(self.tokens.positions[row], dtype=torch.bool)
        kept[:before] = True
        if self.tokens.valid is not None or len(kept) < self.length:
            # Rows without the tokens that left: their places in the sequence are those of one document.
            kept = self.tokens.positions[row] < before
            kept = kept if self.tokens.valid is None else kept & self.tokens.valid[row]
        return {name: value[row][kept] for name, value in self.values.items()}


def _observe(model: Any, x: Tensor, state: State, tokens: Tokens | None) -> tuple[Tensor, dict[str, Seen]]:
    """Output (B, N, V) of the model for embeddings x (B, N, D), and what every layer and router said by name."""
    said: dict[str, Seen] = {}

    def keep(name: str, output: LayerOutput | Routing, inputs: tuple[Any, ...]) -> None:
        said[name] = Seen({key: value.detach() for key, value in tensors_of(output).items()}, inputs[-1], x.shape[1])

    set_seed(SEED)
    with recording(model, keep):
        output = model(x, state, tokens)
    return model.logits(output.hidden).detach(), said


def _moved(new: Tensor, old: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether one of some tokens (m, …) changed by more than the tolerance, relative to their scale, or is missing."""
    if len(new) != len(old):
        return True
    if not new.numel():
        return False
    difference = (new - old).abs().max().item()
    return not difference <= tolerance * max(1.0, old.abs().max().item())


def _first_layer(
    said: dict[str, Seen], reference: dict[str, Seen], rows: Iterable[tuple[int, int]], before: int, tolerance: float
) -> str:
    """The first layer or router that says something else about tokens before ``before``; the head when none does.
    ``rows``: row of ``said`` and that of ``reference`` to compare it with."""

    def differs(name: str, row: tuple[int, int]) -> bool:
        now, then = said[name].of(row[0], before), reference[name].of(row[1], before)
        return any(_moved(value, then[key], tolerance) for key, value in now.items())

    rows = tuple(rows)
    return next(
        (name for name in said if name not in reference or any(differs(name, row) for row in rows)), "the head"
    )


def _leak(
    kind: str,
    how: str,
    position: int,
    outputs: tuple[Tensor, Tensor],
    said: dict[str, Seen],
    reference: dict[str, Seen],
    *,
    row: tuple[int, int],
    tolerance: float,
) -> Leak:
    layer = _first_layer(said, reference, (row,), position, tolerance)
    difference = (outputs[0] - outputs[1])[:position].abs().amax(-1)
    affected = int((~(difference <= tolerance)).int().argmax())
    return Leak(
        kind=kind, layer=layer, position=position, affected=affected, size=difference.max().item(), how=how
    )
