"""The causality gate: before step 1 of every run, no output may depend on a later token or on another row.

Two checks (contracts: causality gate). The exact one perturbs embeddings of a float64 copy and allows 1e-9. The one in
the run's own precision and kernels changes later ids and asks for equal bits.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor, nn

from muse_core.contracts import LayerOutput, Routing, Tokens
from muse_core.evaluation.held_out import undisturbed
from muse_core.evaluation.recording import recording
from muse_core.model.precision import Precision

TOLERANCE = 1e-9
PERTURBATION = 10.0
ROUTED_RUNS = 4
"""Later halves with which a routed model is run: a tie has two sides, so that two of three runs agree about one."""


@attrs.frozen(kw_only=True)
class Leak:
    """A dependence that must not be."""

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

    def __str__(self) -> str:
        cause = "another row of the batch" if self.kind == "other row" else f"the later token {self.position}"
        return (
            f"causality gate: {self.layer} lets the output at token {self.affected} depend on {cause} "
            f"(change {self.size:.1e}, check: {self.kind})"
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


@torch.no_grad()
def exact_leak(model: nn.Module, width: int, periods: tuple[int, ...], *, seed: int = 0) -> Leak | None:
    """Check a float64 model on the CPU; its near-zero parameters are replaced by random values, so that a dead branch
    cannot hide a leak. The model is changed and should be thrown away."""
    generator = torch.Generator().manual_seed(seed)
    _wake(model, generator)
    length = probe_length(periods)
    positions = probe_positions(length, periods)
    base = torch.randn(1, length, width, dtype=torch.float64, generator=generator)
    with undisturbed(model):
        alone, said_alone = _observe(model, base)
        for position in positions:
            changed = base.repeat(2, 1, 1)
            changed[1, position] += PERTURBATION * torch.randn(width, dtype=torch.float64, generator=generator)
            together, said = _observe(model, changed)
            if _moved(together[0], alone[0]):
                return _leak("other row", position, length, (together[0], alone[0]), said, said_alone, row=0)
            if _moved(together[1][:position], alone[0][:position]):
                return _leak("later token", position, position, (together[1], alone[0]), said, said_alone, row=1)
    return None


def own_precision_leak(
    model: Any, vocabulary_size: int, length: int, precision: Precision, *, seed: int = 0, routed: bool = False
) -> Leak | None:
    """Check the model as it will run: change the later half of the ids; outputs before must keep their bits. Where a
    repeat with the same input already differs, or tokens are routed (data-dependent shapes), the allowance is the
    difference of the repeat plus rounding.

    Rounding may also decide a router's tie otherwise, which moves a token by more than rounding, but to one of few
    places. A routed model is therefore run with several later halves, and a token has moved when no two of them agree.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(vocabulary_size, (2, length), generator=generator).to(precision.device)
    half = length // 2

    def hidden(shift: int) -> Tensor:
        changed = ids.clone()
        changed[:, half:] = (ids[:, half:] + shift) % vocabulary_size
        return model(changed).hidden.double()

    with undisturbed(model), precision():
        first, again = hidden(0), hidden(0)
        runs = [first, *(hidden(shift) for shift in range(1, ROUTED_RUNS if routed else 2))]
    floor = (first - again).abs().max().item()
    allowed = floor + (2**-7 * first.abs().max().item() if routed or floor > 0 else 0.0)
    pairs = [(a - b)[:, :half].abs().amax((0, 2)) for a, b in combinations(runs, 2)]
    difference = torch.stack(pairs).amin(0)
    if math.isnan(difference.max().item()) or difference.max().item() > allowed:
        affected = int((~(difference <= allowed)).int().argmax())
        return Leak(
            kind="own precision",
            layer="the model",
            position=half,
            affected=affected,
            size=difference.max().item(),
        )
    return None


def _wake(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        if parameter.numel() and parameter.abs().max() < 1e-3:
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))


class Seen(NamedTuple):
    """What a layer or a router said, and of which tokens: those that left early are not among them."""

    value: Tensor
    """(B, n, …)."""
    tokens: Tokens

    def of(self, row: int, before: int) -> Tensor:
        """(m, …): of the tokens before position ``before`` that the layer saw of a row."""
        kept = self.tokens.positions[row] < before
        if self.tokens.valid is not None:
            kept = kept & self.tokens.valid[row]
        return self.value[row][kept]


def _observe(model: Any, x: Tensor) -> tuple[Tensor, dict[str, Seen]]:
    """Output (B, N, V) of the model for embeddings x (B, N, D), and what every layer and router said by name."""
    said: dict[str, Seen] = {}

    def keep(name: str, output: LayerOutput | Routing, tokens: Tokens) -> None:
        said[name] = Seen(output.update if isinstance(output, LayerOutput) else output.logits, tokens)

    with recording(model, keep):
        positions = torch.arange(x.shape[1]).expand(x.shape[0], -1)
        output = model(x, None, Tokens(positions))
    return model.logits(output.hidden), said


def _moved(new: Tensor, old: Tensor) -> bool:
    """Whether one of some tokens (m, …) changed by more than the tolerance, relative to their scale, or is missing."""
    if len(new) != len(old):
        return True
    if not new.numel():
        return False
    difference = (new - old).abs().max().item()
    return not difference <= TOLERANCE * max(1.0, old.abs().max().item())


def _leak(
    kind: str,
    position: int,
    before: int,
    outputs: tuple[Tensor, Tensor],
    said: dict[str, Seen],
    reference: dict[str, Seen],
    *,
    row: int,
) -> Leak:
    layer = next(
        (name for name, seen in said.items()
         if name not in reference or _moved(seen.of(row, before), reference[name].of(0, before))),
        "the head",
    )
    difference = (outputs[0] - outputs[1])[:before].abs().amax(-1)
    affected = int((~(difference <= TOLERANCE)).int().argmax())
    return Leak(kind=kind, layer=layer, position=position, affected=affected, size=difference.max().item())
