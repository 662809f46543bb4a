"""How much of what fast weights hold stands out from noise, how much there is, and how recent it is.

Shapes: B batch, n tokens, H heads, K key width, M value width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor, nn

from muse_core.component import walk
from muse_core.evaluation.scoring import SEGMENT, Reader
from muse_core.evaluation.suites.subject import Subject
from muse_core.fast_weights import Writes, noise_scale, running
from muse_core.model.kernels import operation_of

THRESHOLD = 2.0
"""σ below which an entry counts as noise where the recipe has no ``snr`` filter; that filter's default."""
ROWS = 8
RECENT = 4
"""The last of so many parts of the text is what counts as recent."""


@attrs.define(kw_only=True)
class Memory:
    """What one layer has written so far in its stream."""

    weights: Tensor
    """(B, H, K, M)."""
    sums: dict[str, Any]
    """``fast_weights.running`` over the whole stream: ``write_scale`` (B, H) is σ²."""
    earlier: Tensor | None = None
    """σ² (B, H) where the recent part began, decayed since."""


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, Memory]]:
    """Yields layer name → ``Memory``, followed through every call of the kernel operation fast_weights.

    The kernels are found as attributes of the modules, where layers keep what ``context.kernels.bind`` gave them. Every
    call must begin where the last one ended.
    """
    found: dict[str, Memory] = {}

    def watching(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            result = kernel(*arguments, **named)
            if named.get("read") != "before":
                _follow(found, name, Writes(*arguments[:5]), result[1])
            return result

        return call

    kernels = [
        (module, attribute, value, name)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if operation_of(value) == "fast_weights"
    ]
    for module, attribute, kernel, name in kernels:
        setattr(module, attribute, watching(name, kernel))
    try:
        yield found
    finally:
        for module, attribute, kernel, _ in kernels:
            setattr(module, attribute, kernel)


def _follow(found: dict[str, Memory], name: str, writes: Writes, final: Tensor) -> None:
    scale = noise_scale(writes)
    zero = torch.zeros_like(scale[:, 0])
    memory = found.get(name)
    before = memory.sums if memory else {"log_decay": zero, "write_scale": zero, "reset": zero[:, 0].bool()}
    sums = running(before, writes.log_decay, scale, None)
    earlier = memory.earlier if memory else None
    if earlier is not None:
        earlier = (2 * writes.log_decay.to(scale.dtype).sum(1)).exp() * earlier
    found[name] = Memory(weights=final, sums=sums, earlier=earlier)


def importance_rows(subject: Subject) -> list[dict[str, Any]]:
    """One row a memory layer with fast weights W, after a text of the training length (means over heads and texts):

    ``snr``: root mean square of W's entries over σ, the deviation that the same writes with random keys and values
    would have left (mathematics, Memory filters); 1 is noise. ``share_below``: entries under ``threshold`` · σ, which
    the ``snr`` filter of the recipe takes for noise; of noise 2 σ take 95 %. ``energy``: ‖W‖². ``recency``: the share
    of σ² that the last quarter of the text has written. ``filter/…``: what the layer's filters themselves measured.
    """
    setup, length = subject.setup, subject.length
    tokens = np.asarray(subject.split.tokens)
    if len(tokens) < length:
        length = len(tokens)
    rows_read = max(1, min(ROWS, len(tokens) // length))
    starts = np.linspace(0, len(tokens) - length, rows_read).astype(np.int64)
    ids = torch.from_numpy(np.stack([tokens[start : start + length] for start in starts]).astype(np.int64))
    # Within one period the kernel is called once, so that every call can be followed.
    segment = min([*setup.periods, SEGMENT])
    reader = Reader(setup, segment=segment)
    recent = length - length // RECENT
    measures: list[dict[str, float]] = []
    with watched(setup.model) as found, _metrics(setup.model, measures):
        _, state = reader.after(ids[:, :recent])
        if recent < length:
            for memory in found.values():
                memory.earlier = memory.sums["write_scale"]
            reader.after(ids[:, recent:], state, recent)
    thresholds = [use.options.threshold for use in walk(setup.recipe.model.options)
                  if (use.kind, use.name) == ("filter", "snr")]
    threshold = float(min(thresholds)) if thresholds else THRESHOLD
    if not found:
        return [{"skipped": "the model has no layer with fast weights"}]
    filters = _means(measures)
    return [
        {"layer": name, "length": length, **_numbers(memory, threshold), "threshold": threshold,
         **{f"filter/{key.partition('/')[2]}": value for key, value in filters.items()
            if key.partition("/")[0] == name and "/" in key.partition("/")[2]}}
        for name, memory in found.items()
    ]


def _numbers(memory: Memory, threshold: float) -> dict[str, float | None]:
    weights, noise = memory.weights.double(), memory.sums["write_scale"].double()
    tiny = torch.finfo(noise.dtype).tiny
    ratio = (weights.square().mean((-1, -2)) / noise.clamp_min(tiny)).sqrt()
    below = (weights.abs() < threshold * noise.sqrt()[..., None, None]).double().mean()
    recency = None
    if memory.earlier is not None:
        recency = (1 - memory.earlier.double() / noise.clamp_min(tiny)).mean().item()
    return {
        "snr": ratio.mean().item(), "share_below": below.item(),
        "energy": weights.square().sum((-1, -2)).mean().item(), "recency": recency,
    }


@contextlib.contextmanager
def _metrics(model: nn.Module, kept: list[dict[str, float]]) -> Iterator[None]:
    """Appends what each call of the model measures."""
    handle = model.register_forward_hook(
        lambda module, inputs, output: kept.append({k: float(v) for k, v in output.metrics.items()})
    )
    try:
        yield
    finally:
        handle.remove()


def _means(measures: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in measures for name in one)
    return {name: float(np.mean([one[name] for one in measures if name in one])) for name in names}
