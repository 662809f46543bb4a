"""M2: damage to the weights is found by the loss on the canary and undone to the state of the manifest.

Each trial goes on with a copy of it, damages the weights after a step and watches. The noise
that is added is scaled until the canary has risen by what the promise speaks of.
"""

from __future__ import annotations

import shutil

import pytest
import torch

from muse_core import fault_injection
from muse_core.evaluation.held_out import undisturbed
from muse_core.selftest.promises.runs import StopAfter, events, loop_of, state_hash
from muse_core.selftest.promises.trial import TRAINED

pytestmark = pytest.mark.promise("M2")

LARGE, SMALL = 1.0, 0.3
SOON, LATE = 4, 25


def damage(loop, nats, generator):
    """Add noise to every weight, so much that the canary's loss rises by ``nats``; returns the rise."""
    monitor = loop.state.monitors.monitors[0][1]
    weights = list(loop.state.optimizers.names.values())
    healthy = [weight.detach().clone() for weight in weights]
    noise = [torch.randn(weight.shape, generator=generator) for weight in weights]

    def rise(scale):
        with torch.no_grad():
            for weight, before, one in zip(weights, healthy, noise):
                weight.copy_(before + scale * one)
        with undisturbed(loop.state.model):
            return monitor.canary(loop.state.model)

    before = rise(0.0)
    low, high = 0.0, 1e-3
    while rise(high) - before < nats:
        low, high = high, 2 * high
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if rise(middle) - before < nats else (low, middle)
    return rise(high) - before


def trial_of(trained, folder, nats, seed):
    """Steps from the damage to the rollback, or None within 2 × LATE; and whether the state came back."""
    source, recipe = trained
    shutil.copytree(source, folder)
    generator = torch.Generator().manual_seed(seed)
    at = TRAINED + 3 + seed % 17
    seen = {}
    with loop_of(folder, recipe, StopAfter(at - TRAINED + LATE + 5)) as loop:

        def after(model):
            if loop.state.at.step == at and "rise" not in seen:
                seen["rise"] = damage(loop, nats, generator)
            return model

        def before(batch):
            if loop.incidents.known and "restored" not in seen:
                seen["restored"] = state_hash(loop)
                loop.stop.left = 0
            return batch

        with fault_injection.installed({"post_step": after, "batch": before}):
            loop.run()
    assert seen["rise"] == pytest.approx(nats, rel=0.05) or seen["rise"] > nats
    found = events(folder, "incident")
    if not found:
        return None, None
    there = {one.number: one for one in loop.checkpoints.checkpoints.generations()}
    generation = there[found[0]["generation"]]
    assert found[0]["target"] <= at and generation.certified
    return found[0]["step"] - at, seen["restored"] == generation.state_hash


@pytest.mark.parametrize(
    "nats, steps, share, counts", [(LARGE, SOON, 1.0, (2, 100)), (SMALL, LATE, 0.9, (4, 100))], ids=["large", "small"]
)
def test_damage_is_rolled_back(trained, tmp_path, trial, nats, steps, share, counts):
    count = trial.size(*counts)
    results = [
        trial_of(trained, tmp_path / str(number), nats, trial.seed % 10_000 + number) for number in range(count)
    ]
    delays = [delay for delay, _ in results]
    within = sum(delay is not None and delay <= steps for delay in delays)
    assert within >= share * count - (not trial.long), delays
    assert all(same for delay, same in results if delay is not None)
    found = sorted(delay for delay in delays if delay is not None)
    median = found[len(found) // 2]
    trial.say(f"+{nats} nats: {within} of {count} within {steps} steps (median {median}), bits restored")
