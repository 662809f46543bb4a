"""How often rules for rollbacks fire on healthy runs, and how fast they find damage:

    python -m muse_rollback.simulate [RUN …] [--steps N] [--damage NATS …] [--trials N] [--seed S]

Without a RUN the losses are those of a model of noise (``muse_rollback.noise``), otherwise those that the runs have
recorded. No model is trained: a false alarm leaves the losses as they are and restarts the rule.
"""

from __future__ import annotations

import argparse
import math
import random as entropy
from collections.abc import Sequence
from pathlib import Path

import attrs
import numpy as np

from muse_core.metrics.jsonl import read_rows
from muse_rollback.machine import Machine
from muse_rollback.noise import Noise, recorded
from muse_rollback.options import PerplexitySpikeOptions, RollbackOptions
from muse_rollback.perplexity_spike import Average

SOON, LATE = 4, 25
"""Steps within which damage of 1 nat and of 0.3 nats should be found."""
SETTLED = 450
"""Steps before injected damage: warm-up and five evaluations."""
SEGMENT = 20_000
"""Steps of one run of the model of noise."""


@attrs.frozen
class Alarms:
    """What a rule did on healthy losses."""

    steps: int
    """Steps at which it could decide."""
    alarms: int
    evaluations: int = 0
    """Of the canary, beyond the regular ones."""

    @property
    def rate(self) -> float:
        """Alarms in 100,000 steps."""
        return 1e5 * self.alarms / max(self.steps, 1)

    def __add__(self, other: Alarms) -> Alarms:
        return Alarms(*(mine + theirs for mine, theirs in zip(attrs.astuple(self), attrs.astuple(other))))


def two_stages(loss: Sequence[float], canary: Sequence[float], options: RollbackOptions) -> tuple[Alarms, list[int]]:
    """The machine of the monitor on losses and canary values by step; what it did, and the steps of its alarms."""
    machine, found, extra = Machine(options), [], 0
    for step, value in enumerate(loss):
        if machine.damage is not None:
            found.append(step)
            machine = revived(machine, options)
        machine.see(step, float(value))
        if machine.asks(step + 1):
            extra += not machine.regular(step + 1)
            machine.answer(step + 1, float(canary[min(step + 1, len(canary) - 1)]))
    return Alarms(max(len(loss) - machine.start, 0), len(found), extra), found


def revived(machine: Machine, options: RollbackOptions) -> Machine:
    """A machine that has just been rolled back: the same memory, no suspicion."""
    again = Machine(options)
    again.load_state_dict(machine.state_dict() | {"damage": None, "suspicion": None})
    again.canary.above_since = None
    return again


def five_percent(loss: Sequence[float], options: PerplexitySpikeOptions) -> Alarms:
    """The rule of the monitor perplexity-spike."""
    average = Average(options)
    alarms = sum(average.exceeded(step, float(value)) is not None for step, value in enumerate(loss))
    return Alarms(max(len(loss) - options.warmup_steps, 0), alarms)


def delays(
    nats: float, *, trials: int, noise: Noise, options: RollbackOptions, random: np.random.Generator
) -> list[float]:
    """Steps from damage, a lasting rise of training and canary loss by ``nats``, to the verdict; infinite when there is
    none within 200 steps."""
    found = []
    for _ in range(trials):
        start = SETTLED + int(random.integers(100))
        loss, canary = noise.losses(start + 200, random)
        loss[start:] += nats
        canary[start:] += nats
        _, alarms = two_stages(loss, canary, options)
        found.append(next((step - start for step in alarms if step >= start), math.inf))
    return found


def healthy(
    runs: Sequence[Path], *, steps: int, noise: Noise, options: RollbackOptions, random: np.random.Generator
) -> tuple[Alarms, Alarms]:
    """Both rules on the losses of runs, or on ``steps`` healthy ones of the model of noise."""
    ours = theirs = Alarms(0, 0)
    recordings = [list(read_rows(run / "metrics.jsonl")) for run in runs]
    turn = 0
    while turn < len(recordings) if recordings else ours.steps < steps:
        if recordings:
            loss, canary = recorded(recordings[turn], noise, random)
            if len(loss) <= options.warmup_steps:
                raise SystemExit(f"{runs[turn]}: {len(loss)} rows of losses, no more than the warm-up (--warmup-steps)")
        else:
            loss, canary = noise.losses(min(SEGMENT, steps - ours.steps + options.warmup_steps), random)
        ours += two_stages(loss, canary, options)[0]
        theirs += five_percent(loss, PerplexitySpikeOptions(warmup_steps=options.warmup_steps))
        turn += 1
    return ours, theirs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="run directories with metrics.jsonl")
    parser.add_argument("--steps", type=int, default=100_000, help="steps of the model of noise")
    parser.add_argument("--damage", type=float, nargs="*", default=[1.0, 0.3], help="nats, injected into the model")
    parser.add_argument("--trials", type=int, default=200, help="of each damage")
    parser.add_argument("--seed", type=int, default=entropy.SystemRandom().randrange(2**31))
    parser.add_argument("--warmup-steps", type=int, help="of the rule; recorded runs may be short")
    for field in attrs.fields(Noise):
        parser.add_argument(f"--noise-{field.name}", type=float, default=field.default, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    try:
        noise = Noise(**{field.name: getattr(chosen, f"noise_{field.name}") for field in attrs.fields(Noise)})
    except ValueError as error:
        parser.error(f"--noise-{error}")
    given = {} if chosen.warmup_steps is None else {"warmup_steps": chosen.warmup_steps}
    options = RollbackOptions(**given)
    random = np.random.default_rng(chosen.seed)
    ours, theirs = healthy(chosen.runs, steps=chosen.steps, noise=noise, options=options, random=random)
    print(f"seed {chosen.seed}, {ours.steps} healthy steps of {', '.join(map(str, chosen.runs)) or noise}")
    print(f"rollback          {ours.alarms:6d} false alarms, {ours.rate:9.2f} in 100,000 steps; "
          f"{1e2 * ours.evaluations / max(ours.steps, 1):.2f} evaluations of the canary in 100 steps for suspicions")
    print(f"perplexity-spike  {theirs.alarms:6d} false alarms, {theirs.rate:9.2f} in 100,000 steps")
    for nats in chosen.damage:
        times = delays(nats, trials=chosen.trials, noise=noise, options=options, random=random)
        shares = ", ".join(f"{sum(time <= limit for time in times) / len(times):.1%} within {limit}" for limit in
                           (SOON, LATE))
        print(f"damage of {nats:g} nats: {shares} steps, {times.count(math.inf)} of {len(times)} not found")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
