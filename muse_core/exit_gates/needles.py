"""The needle probe: what it costs, whether memory kernels hold what theory says, and whether the model recalls."""

from __future__ import annotations

import math

import attrs

from muse_core.building import construct
from muse_core.component import walk
from muse_core.data.tasks import TaskCorpus
from muse_core.evaluation.held_out import undisturbed
from muse_core.evaluation.needles import by_chance
from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, judged, not_applicable

PROBE = "niah-probe"
MOST = 0.01
"""Of the run's time."""
TOLERANCE = 0.05
"""Of the capacity that theory gives."""


def needle_overhead(bench: Bench) -> Finding:
    """The share of the training run's wall clock that its probes took after the first one, from the end of that to the
    end of the last: whole intervals. The first of a process compiles kernels for its own shapes, which does not come
    again: its time is said beside. Where the run made no second one, one is timed, after a first, against the steps
    that the recipe leaves between two."""
    if all(use.name != PROBE for use in bench.checked.recipe.monitors):
        return not_applicable(f"the recipe has no {PROBE} monitor")
    use, monitor = bench.monitor(PROBE)
    train = bench.trained.rows("train")
    if not train:
        return judged(False, "no step was recorded", bench.trained.halted)
    taken = [row for row in bench.trained.rows("probe") if f"{PROBE}/seconds" in row]
    costs = [row[f"{PROBE}/seconds"] for row in taken]
    spent = sum(costs)
    step_seconds = train[-1]["seconds"] / train[-1]["step"]
    at = ", ".join(str(row["step"]) for row in taken[1:])
    model, precision = bench.trained.setup.model, bench.trained.setup.precision
    while len(costs) < 2:
        with undisturbed(model), precision():
            costs.append(monitor.probe(model)["seconds"])
    first, later = costs[0], costs[1:]
    cost = max(later)
    if len(taken) > 1:
        share = sum(later) / (sum(later) + (taken[-1]["step"] - taken[0]["step"]) * step_seconds)
        how = f"probes after step {at}, the longest {cost:.2f} s of steps of {step_seconds:.2f} s"
    else:
        waits = max(1, math.ceil(cost / (use.options.budget * step_seconds) / use.options.every))
        share = cost / (waits * use.options.every * step_seconds + cost)
        how = (
            f"one probe takes {cost:.2f} s, a step {step_seconds:.2f} s; with every = {use.options.every} and its "
            f"budget it runs each {waits * use.options.every} steps"
        )
    needed = math.ceil(cost / (MOST * step_seconds))
    return judged(
        share < MOST,
        f"{share:.2%} of the time; {how}; the first of the process, with what is compiled once, took {first:.2f} s",
        f"the probe takes 1 % of the time or more - set its every to {needed} or more, its budget to 0.01 or less",
        share=share,
        probes=len(taken),
        seconds_per_probe=cost,
        seconds_of_first=first,
        share_of_run=spent / (spent + train[-1]["step"] * step_seconds),
        seconds_per_step=step_seconds,
        steps_for_one_percent=needed,
    )


ROWS = 32
"""Of the recall gate: 13 right answers are then more than chance, where chance is one in four."""
LEVEL = 0.05
"""Probability with which a model that ignores the key passes the recall gate."""


def memory_recall(bench: Bench) -> Finding:
    """Whether the trained model recalls what it is asked for: the needle probe on 32 rows, against what a model that
    ignores the key would get."""
    found = bench.monitor(PROBE)
    if found is None:
        return not_applicable("muse-niah-probe, which asks, is not installed")
    if all(use.kind != "memory layer" for use in walk(bench.checked.recipe.model.options)):
        return not_applicable("the model has no memory layer")
    if isinstance(bench.setup.corpus, TaskCorpus):
        return not_applicable("the recipe's data is a task, which has no text to hide needles in")
    setup, use = bench.trained.setup, found[0]
    more = attrs.evolve(use, options=attrs.evolve(use.options, needles=ROWS))
    monitor = construct(more, setup.monitor_context(PROBE))
    with undisturbed(setup.model), setup.precision():
        numbers = monitor.probe(setup.model)
    hits, chance = round(numbers["recall"] * ROWS), numbers["chance"]
    lucky = by_chance(hits, ROWS, chance)
    controls = ", ".join(
        f"{numbers[f'over_{name}']:+.3f} over {said}"
        for name, said in (("emptied", "emptied memory"), ("shuffled", "another row's"), ("other_key", "another key"))
    )
    return judged(
        lucky <= LEVEL,
        f"after {bench.steps} steps {hits} of {ROWS} needles recalled, {numbers['distance']:.0f} tokens back; "
        f"ignoring the key gives {chance:.0%}, and so many or more with probability {lucky:.2g}; nats an answer token "
        f"{controls}",
        f"the memory does not recall more than a model that ignores the key - train longer (--steps, now {bench.steps})"
        ", on text or a task that needs recall",
        probability_by_chance=lucky,
        **{name: value if math.isfinite(value) else str(value) for name, value in numbers.items()},
    )


def memory_capacity(bench: Bench) -> Finding:
    """The capacity test with the run's kernels: what they hold, whatever the model has learned."""
    found = bench.monitor(PROBE)
    if found is None:
        return not_applicable("muse-niah-probe, which has the test, is not installed")
    # The untrained set-up: monitors bind kernels of their own.
    if not any(one.operation == "fast_weights" for one in bench.setup.kernels.selections.values()):
        return not_applicable("the model has no linear memory")
    if not bench.setup.corpus.is_text:
        return not_applicable("a task has no text to hide a needle in")
    setup = bench.trained.setup
    with undisturbed(setup.model), setup.precision():
        numbers = found[1].probe(setup.model)
    measured, expected = numbers["capacity"], numbers["capacity_expected"]
    off = measured / expected - 1
    figure = f"cosine {measured:.4f} where theory has {expected:.4f} ({off:+.1%})"
    return judged(
        abs(off) <= TOLERANCE,
        figure,
        f"the memory kernel does not hold what it should (allowed {TOLERANCE:.0%}) - a fault of the kernel backend",
        capacity=measured,
        capacity_expected=expected,
    )
