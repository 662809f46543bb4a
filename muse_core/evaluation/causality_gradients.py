"""The causality gate's third check: gradients, on the path that trains.

One backward pass a cut, on the run's first real batch, in training mode, with the run's document starts, precision and
kernels: the gradient of what the head reads before token t with respect to the embeddings at and after t, and to every
other row, is exactly zero in a causal model, since nothing connects them. What reaches an output without a gradient is
what the checks by values are for.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_core.contracts import Batch, LayerOutput, Routing, State
from muse_core.evaluation.causality import SEED, Leak, as_called, carried
from muse_core.evaluation.not_finite import NotFinite
from muse_core.evaluation.recording import recording, tensors_of
from muse_core.model.precision import Precision
from muse_core.model.seeding import set_seed


class Cut(NamedTuple):
    """Outputs of a row before a token, which may not depend on what is at or after it or in another row."""

    row: int
    token: int


def cuts(batch: Batch) -> list[Cut]:
    """One cut at a document start, where there is one after token 0, and one that is none."""
    length = batch.inputs.shape[1]
    resets = batch.tokens.resets
    inside = torch.zeros_like(batch.inputs, dtype=torch.bool) if resets is None else resets.clone()
    inside[:, 0] = False
    starts = inside.nonzero()
    found = [Cut(int(starts[0, 0]), int(starts[0, 1]))] if len(starts) else []
    row = found[0].row if found else 0
    plain = [token for token in (length // 2, length // 3, length - 1, 1) if 0 < token < length]
    middle = next((token for token in plain if not inside[row, token]), None)
    return found + ([Cut(row, middle)] if middle is not None else [])


def gradient_leak(
    model: Any, batch: Batch, precision: Precision, *, period: int | None = None
) -> Leak | NotFinite | None:
    """``batch`` on the run's device. The model's gradients, modes, buffers and random state are left as they were.
    ``period``: from the state that a first call with the batch returned, in a stream of this period."""
    with as_called(model, True):
        state: State = None
        if period is not None:
            with precision():
                state, tokens = carried(model, batch.inputs, batch.tokens, period)
            batch = batch._replace(tokens=tokens)
        set_seed(SEED)
        embedded = model.embed(batch.inputs).detach().requires_grad_()
        with precision():
            hidden = model(embedded, state, batch.tokens).hidden
        for cut in cuts(batch):
            found = _gradient(hidden, embedded, cut)
            if found is not None:
                row, token, size = found
                layer = _layer(model, batch, state, precision, cut)
                how = "gradients on the first batch, in training" + ", with carried state" * (period is not None)
                if not math.isfinite(size):
                    return NotFinite(layer=layer, position=token, how=how, what="gradients")
                kind = "other row" if row != cut.row else "later token"
                return Leak(kind=kind, layer=layer, position=token, affected=cut.token - 1, size=size, how=how)
    return None


def _gradient(hidden: Tensor, embedded: Tensor, cut: Cut) -> tuple[int, int, float] | None:
    """Row, token and size of the first gradient that should be zero."""
    early = hidden[cut.row, : cut.token]
    if not early.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(_weighted(early), embedded, allow_unused=True, retain_graph=True)
    return None if gradient is None else _wrong(gradient, cut)


def _wrong(gradient: Tensor, cut: Cut) -> tuple[int, int, float] | None:
    """``gradient`` (B, N, …) of the outputs of a cut. A finite one comes before what is no finite number, which may be
    a product of zero and infinity and no dependence."""
    size = gradient.flatten(2).abs().amax(-1).clone()
    size[cut.row, : cut.token] = 0
    places = ((size != 0) & size.isfinite()).nonzero()
    if not len(places):
        places = (size != 0).nonzero()
    if not len(places):
        return None
    row, token = places[0].tolist()
    return row, token, float(size[row, token])


def _weighted(value: Tensor) -> Tensor:
    """A scalar in which no gradient cancels."""
    weights = torch.linspace(1.0, 2.0, value.numel(), device=value.device, dtype=torch.float32)
    return (value.float().flatten() * weights).sum()


def _layer(model: Any, batch: Batch, state: State, precision: Precision, cut: Cut) -> str:
    """The first layer or router whose own output before the cut has a gradient to its own input at or after it."""
    seen: list[tuple[str, Tensor, dict[str, Tensor]]] = []

    def keep(name: str, output: LayerOutput | Routing, inputs: tuple[Any, ...]) -> None:
        seen.append((name, inputs[0], tensors_of(output)))

    set_seed(SEED)
    embedded = model.embed(batch.inputs).detach().requires_grad_()
    with recording(model, keep), precision():
        model(embedded, state, batch.tokens)
    for name, x, values in seen:
        if not x.requires_grad or x.shape[:2] != batch.inputs.shape:
            continue
        for value in values.values():
            if value.requires_grad and value.shape[:2] == x.shape[:2]:
                early = _weighted(value[cut.row, : cut.token])
                (gradient,) = torch.autograd.grad(early, x, retain_graph=True, allow_unused=True)
                if gradient is not None and _wrong(gradient, cut) is not None:
                    return name
    return "the model"
