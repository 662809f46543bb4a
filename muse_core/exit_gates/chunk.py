"""The chunk of fast weights: the same model at every size, and the one in use is about the fastest."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from muse_core.build import build_model
from muse_core.data.batches import micro_batches, to_device
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, judged, not_applicable
from muse_core.model.plan import periods
from muse_core.recipe import Checked
from muse_core.training.objectives import NextToken

CHUNKS = (8, 16, 32, 64)
ROUNDS = 3
EXACT = 1e-10
SLACK = 0.8
"""Share of the fastest chunk's throughput that the chunk in use must reach; less is more than what timing varies by."""


def fast_weight_chunk(bench: Bench) -> Finding:
    """Trains a batch forward and backward at each chunk, in turns, and compares float64 copies."""
    if not any(one.operation == "fast_weights" for one in bench.setup.kernels.selections.values()):
        return not_applicable("the model has no fast weights")
    used = bench.checked.recipe.kernels.chunk
    variants = {chunk: bench.variant({"kernels": {"chunk": chunk}}) for chunk in sorted({*CHUNKS, used})}
    spread = largest_difference(bench, variants, used)
    period_changed = len({periods(checked.recipe.model.options) for checked in variants.values()}) > 1
    speeds = throughput(bench, variants)
    fastest = max(speeds, key=lambda chunk: speeds[chunk])
    said = ", ".join(f"{chunk}: {speed:,.0f}" for chunk, speed in speeds.items())
    figure = f"tokens/s by chunk {said}; in use {used}, fastest {fastest}; outputs equal to {spread:.0e}"
    if spread > EXACT or period_changed:
        reason = f"the chunk changes the model (allowed {EXACT:.0e} in float64) - a fault of the kernel backend"
    else:
        reason = f"another chunk is faster by {speeds[fastest] / speeds[used] - 1:.0%} - set kernels.chunk = {fastest}"
    good = spread <= EXACT and not period_changed and speeds[used] >= SLACK * speeds[fastest]
    numbers = {f"tokens_per_second_{chunk}": speed for chunk, speed in speeds.items()}
    return judged(good, figure, reason, chunk=used, fastest=fastest, largest_difference=spread, **numbers)


@torch.no_grad()
def largest_difference(bench: Bench, variants: dict[int, Checked], used: int) -> float:
    """Of logits and states of float64 models over more than two periods, relative to their largest magnitude."""
    longest = max(periods(bench.checked.recipe.model.options), default=0)
    ids = bench.ids(2, max(2 * longest, 2 * max(variants)) + 3)

    def outputs(checked: Checked) -> list[Tensor]:
        model = bench.exact_model(checked)
        output = model(ids)
        leaves = [leaf for leaf in pytree.tree_leaves(output.state) if isinstance(leaf, Tensor)]
        return [model.logits(output.hidden), *leaves]

    base = outputs(variants[used])
    return max(
        _distance(value, expected)
        for chunk, checked in variants.items() if chunk != used
        for value, expected in zip(outputs(checked), base, strict=True)
    )


def _distance(value: Tensor, expected: Tensor) -> float:
    """NaN, which no comparison lets pass, counts as infinite."""
    value, expected = value.double(), expected.double()
    found = ((value - expected).abs().max() / expected.abs().max().clamp_min(1.0)).item() if value.numel() else 0.0
    return math.inf if math.isnan(found) else found


def throughput(bench: Bench, variants: dict[int, Checked]) -> dict[int, float]:
    """Tokens a second of forward and backward on one micro-batch: medians over rounds in turns."""
    setup = bench.setup
    micro = next(micro_batches(setup.training_data().batch(0, ()), bench.checked.recipe.train.micro_batch))
    batch = to_device(micro, setup.precision.device)
    steps = {chunk: _step(bench, checked, batch) for chunk, checked in variants.items()}
    seconds: dict[int, list[float]] = {chunk: [] for chunk in steps}
    for number in range(ROUNDS + 1):
        for chunk, step in steps.items():
            taken = _timed(step, setup.precision.device)
            if number:  # the first time is warm-up
                seconds[chunk].append(taken)
    return {chunk: batch.inputs.numel() / statistics.median(taken) for chunk, taken in seconds.items()}


def _step(bench: Bench, checked: Checked, batch: Any) -> Callable[[], None]:
    setup = bench.setup
    model, _ = build_model(
        checked.recipe, checked.registry, vocabulary_size=setup.corpus.vocabulary_size,
        device=setup.precision.device, dtype=setup.precision.dtype,
    )

    def step() -> None:
        with setup.precision():
            total = NextToken()(model, batch, None).total
        (total / batch.inputs.numel()).backward()
        model.zero_grad()

    return step


def _timed(step: Callable[[], None], device: torch.device) -> float:
    def settle() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    settle()
    started = time.perf_counter()
    step()
    settle()
    return time.perf_counter() - started
