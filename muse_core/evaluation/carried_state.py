"""Whether a model's state holds all that its outputs depend on, so that a text read in several calls gives what one
call gives, and whether it starts afresh where a document does.

The contract asks both of every layer, and the suite of a plugin tests them; a layer that was never tested may break
them and train as well as any.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.contracts import LayerOutput, Routing, State, Tokens
from muse_core.evaluation.causality import as_called, document_tokens, probe_length
from muse_core.evaluation.recording import recording, tensors_of

ALLOWED = 1e-6
"""Of the difference, relative to the outputs, in float64. Sums that are cut elsewhere round otherwise, by 1e-15 to some
1e-12 in a resonance; what is forgotten is of the size of an update."""


@attrs.frozen(kw_only=True)
class Forgotten:
    """A dependence that the state does not hold."""

    layer: str
    """The first layer that said something else, or ``the head`` when none did."""
    size: float
    """Largest difference of the outputs."""

    def __str__(self) -> str:
        return (
            f"{self.layer} forgets what it has read when a text comes in several calls: outputs then differ by "
            f"{self.size:.1e} from those of one call. Rows of training and held-out text are read in one; what is "
            'generated or scored, and data.order = "streams", in several, and means little until the state, the second '
            "part of LayerOutput, holds all that later tokens need"
        )


@attrs.frozen(kw_only=True)
class ReadAcross:
    """A dependence on a document before."""

    layer: str
    """The first layer that said something else of the later document, or ``the head`` when none did."""
    size: float
    """Largest difference of the outputs."""

    def __str__(self) -> str:
        return (
            f"{self.layer} reads across the start of a document: outputs differ by {self.size:.1e} with another one "
            "before it in the row. Rows of training and held-out text hold several, and tokens.resets is true where "
            "layers should start afresh: let it heed that, or say data.reset_at_documents = false, so that a row is "
            "one text for all layers"
        )


def state_faults(
    model: Any, width: int, periods: tuple[int, ...], *, documents: bool
) -> list[Forgotten | ReadAcross]:
    """What ``forgotten`` finds, and with ``documents`` what ``read_across`` does."""
    found = (forgotten(model, width, periods), read_across(model, width, periods) if documents else None)
    return [one for one in found if one is not None]


@torch.no_grad()
def read_across(model: Any, width: int, periods: tuple[int, ...], *, seed: int = 0) -> ReadAcross | None:
    """Compare outputs (1, N, V) of a float64 model for N random embeddings of two documents with those for another
    first document. None where those of the second agree."""
    length = probe_length(periods)
    half = length // 2  # where ``document_tokens`` begins the second; not at the edge of a period
    generator = torch.Generator().manual_seed(seed)
    x, other = torch.randn(2, 1, length, width, dtype=torch.float64, generator=generator)
    other[:, half:] = x[:, half:]
    device = next(model.parameters()).device
    outputs: list[Tensor] = []
    said: list[dict[str, Tensor]] = []
    for rows in (x.to(device), other.to(device)):
        updates: dict[str, Tensor] = {}

        def keep(name: str, output: LayerOutput | Routing, _: Any, into: dict[str, Tensor] = updates) -> None:
            # Those of tokens that are left of a row stand elsewhere.
            if isinstance(output, LayerOutput) and output.update.shape[1] == length:
                into[name] = output.update[:, half:]

        with as_called(model, False), recording(model, keep):
            hidden = model(rows, None, document_tokens(rows, "inside")).hidden
            outputs.append(model.logits(hidden)[:, half:])
        said.append(updates)
    if _agree(outputs[1], outputs[0]):
        return None
    layer = next((name for name, value in said[0].items() if not _agree(said[1].get(name), value)), "the head")
    return ReadAcross(layer=layer, size=(outputs[1] - outputs[0]).abs().max().item())


@torch.no_grad()
def forgotten(model: Any, width: int, periods: tuple[int, ...], *, seed: int = 0) -> Forgotten | None:
    """Compare outputs (1, N, V) of a float64 model for N random embeddings in one call with those in three: about half,
    one token, the rest. None where they agree."""
    length = probe_length(periods)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, length, width, dtype=torch.float64, generator=generator)
    x = x.to(next(model.parameters()).device)
    half = length // 2  # not at the edge of a period, see probe_length
    with as_called(model, False):
        whole, said_whole = read(model, x, (0, length), periods)
        cut, said = read(model, x, (0, half, half + 1, length), periods)
    if _agree(cut, whole):
        return None
    layer = next((name for name, value in said_whole.items() if not _agree(said.get(name), value)), "the head")
    return Forgotten(layer=layer, size=(cut - whole).abs().max().item())


def read(
    model: Any, x: Tensor, edges: tuple[int, ...], periods: tuple[int, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs (1, N, V) for x, ids (1, N) or embeddings (1, N, D), read from edge to edge with the state carried, and
    every layer's updates."""
    period = math.lcm(*periods) if periods else 1
    said: dict[str, list[Tensor]] = {}

    def keep(name: str, output: LayerOutput | Routing, _: tuple[Any, ...]) -> None:
        if isinstance(output, LayerOutput):
            said.setdefault(name, []).append(tensors_of(output)["update"])

    state: State = None
    outputs = []
    with recording(model, keep):
        for first, last in pairwise(edges):
            positions = torch.arange(first, last, device=x.device)[None]
            output = model(x[:, first:last], state, Tokens(positions, offset=first % period))
            state = output.state
            outputs.append(model.logits(output.hidden))
    return torch.cat(outputs, 1), {name: torch.cat(parts, 1) for name, parts in said.items()}


def _agree(one: Tensor | None, other: Tensor) -> bool:
    """Whether both are the same but for rounding. What is no number in both is another fault."""
    if one is None or one.shape != other.shape:
        return False
    scale = max(1.0, other.abs().nan_to_num().max().item()) if other.numel() else 1.0
    return torch.allclose(one, other, rtol=0.0, atol=ALLOWED * scale, equal_nan=True)
