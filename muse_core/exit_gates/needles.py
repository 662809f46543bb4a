"""The needle probe: what it costs, whether memory kernels recall what theory says, and what the model remembers."""

from __future__ import annotations

import math

from muse_core.evaluation.held_out import undisturbed
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, judged, not_applicable

PROBE = "niah-probe"
MOST = 0.01
"""Of the run's time."""
TOLERANCE = 0.05
"""Of the capacity that theory gives."""


def needle_overhead(bench: Bench) -> Finding:
    """The share of the training run's wall clock that its probes took, from the start to the end of the last of them:
    whole intervals. Where none was due, one probe timed against the steps that the recipe leaves between two."""
    if all(use.name != PROBE for use in bench.checked.recipe.monitors):
        return not_applicable(f"the recipe has no {PROBE} monitor")
    use, monitor = bench.monitor(PROBE)
    train = bench.trained.rows("train")
    if not train:
        return judged(False, "no step was recorded", bench.trained.halted)
    step_seconds = train[-1]["seconds"] / train[-1]["step"]
    probes = [row for row in bench.trained.rows("probe") if f"{PROBE}/seconds" in row]
    if probes:
        share, cost = probes[-1][f"{PROBE}/share"], max(row[f"{PROBE}/seconds"] for row in probes)
        at = ", ".join(str(row["step"]) for row in probes)
        how = f"probes after step {at}, the longest {cost:.2f} s of steps of {step_seconds:.2f} s"
    else:
        model, precision = bench.trained.setup.model, bench.trained.setup.precision
        with undisturbed(model), precision():
            cost = monitor.probe(model)["seconds"]
        waits = max(1, math.ceil(cost / (use.options.budget * step_seconds) / use.options.every))
        share = cost / (waits * use.options.every * step_seconds + cost)
        how = (
            f"one probe takes {cost:.2f} s, a step {step_seconds:.2f} s; with every = {use.options.every} and its "
            f"budget it runs each {waits * use.options.every} steps"
        )
    needed = math.ceil(cost / (MOST * step_seconds))
    return judged(
        share < MOST,
        f"{share:.2%} of the time; {how}",
        f"the probe takes 1 % of the time or more - set its every to {needed} or more, its budget to 0.01 or less",
        share=share,
        probes=len(probes),
        seconds_per_probe=cost,
        seconds_per_step=step_seconds,
        steps_for_one_percent=needed,
    )


def memory_capacity(bench: Bench) -> Finding:
    """The capacity test with the run's kernels, and the real probe with its controls on the trained model."""
    found = bench.monitor(PROBE)
    if found is None:
        return not_applicable("muse-niah-probe, which has the test, is not installed")
    # The untrained set-up: monitors bind kernels of their own.
    if not any(one.operation == "fast_weights" for one in bench.setup.kernels.selections.values()):
        return not_applicable("the model has no linear memory")
    setup = bench.trained.setup
    with undisturbed(setup.model), setup.precision():
        numbers = found[1].probe(setup.model)
    measured, expected = numbers["capacity"], numbers["capacity_expected"]
    off = measured / expected - 1
    figure = (
        f"cosine {measured:.4f} where theory has {expected:.4f} ({off:+.1%}); after {bench.steps} steps, needles "
        f"{numbers['distance']:.0f} tokens back: recall {numbers['recall']:.2f}, {numbers['log_probability']:.2f} nats "
        f"a token, {numbers['over_emptied']:+.3f} over emptied and {numbers['over_shuffled']:+.3f} over shuffled memory"
    )
    return judged(
        abs(off) <= TOLERANCE,
        figure,
        f"the memory kernel does not hold what it should (allowed {TOLERANCE:.0%}) - a fault of the kernel backend",
        **{name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
    )
