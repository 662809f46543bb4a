"""What watching costs: ``python tests/benchmarks/monitors.py [RECIPE] [--rounds 5] [--set train.device="cpu"]``.

Times whole training steps of a recipe and, in turns with them, the finite check, gradient-safety under each policy, the
clip, and one needle probe. Prints each as a share of a step: a ratio within one run, so that other load on the machine
matters little.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from muse_core.building import construct
from muse_core.component import Use
from muse_core.data.batches import to_device
from muse_core.evaluation.held_out import undisturbed
from muse_core.recipe import check_table, read_recipe
from muse_core.training.objectives import NextToken
from muse_core.training.optimizers import clip, gradient_numbers, make_optimizers
from muse_core.training.optimizers import norms as norms_of
from muse_core.training.setup import Setup, set_up

REPEATS = 5
"""Of what takes milliseconds, after each step."""
POLICIES = ("skip", "halt", "replace")


def monitor_of(setup: Setup, table: dict[str, Any]) -> Any:
    """A monitor with these options, whatever monitors the recipe has."""
    small = {"name": "one", "monitors": [table], "model": {"width": 8, "depth": 1, "block": ["feed-forward"]}}
    (use,) = check_table(small, setup.registry).recipe.monitors
    assert isinstance(use, Use)
    return construct(use, setup.monitor_context(use.name))


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("recipe", nargs="?", default="recipes/phase2_base.toml")
    given.add_argument("--rounds", type=int, default=5)
    given.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = given.parse_args()
    checked = read_recipe(options.recipe, options.set)
    setup = set_up(checked.recipe, checked.registry)
    device, data = setup.precision.device, setup.training_data()
    optimizers = make_optimizers(setup.model, setup.recipe.train, lambda name: True)
    parameters = list(optimizers.names.values())
    safety = {policy: monitor_of(setup, {"use": "gradient-safety", "policy": policy}) for policy in POLICIES}
    probe = monitor_of(setup, {"use": "niah-probe"})
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        started = time.perf_counter()
        result = work(*arguments)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return result

    def forward_backward(step: int) -> None:
        batch = to_device(data.batch(step, ()), device)
        with setup.precision():
            result = NextToken()(setup.model, batch, None)
        (result.total / batch.inputs.numel()).backward()

    def watch(policy: str, gradients: dict[str, torch.Tensor], norms: torch.Tensor) -> None:
        safety[policy].measure("gradients", gradients)
        safety[policy].measure("norms", {"names": tuple(gradients), "norms": norms})

    def needle() -> None:
        with undisturbed(setup.model), setup.precision():
            probe.probe(setup.model)

    for step in range(options.rounds + 1):
        if step == 1:
            seconds.clear()  # the first step is warm-up
        timed("forward and backward", forward_backward, step)
        gradients = {name: p.grad for name, p in optimizers.names.items() if p.grad is not None}
        for _ in range(REPEATS):
            norms = timed("finite check and norm", norms_of, list(gradients.values()))
            numbers = timed("global norm", gradient_numbers, norms)
            for policy in POLICIES:
                timed(f"gradient-safety {policy}", watch, policy, gradients, norms)
            norm = float(numbers["gradient_norm"])
            timed("clip", clip, parameters, norm, norm * 0.999)
        timed("optimiser", optimizers.step, 1.0)
        optimizers.zero_grad()
        timed("one needle probe", needle)

    median = {name: statistics.median(found) for name, found in seconds.items()}
    step_seconds = median["forward and backward"] + median["optimiser"]
    count = sum(p.numel() for p in parameters)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    print(f"{options.recipe}: {count:,} parameters in {len(parameters)} tensors, {where}, {setup.precision.dtype}")
    print(f"a step: {step_seconds * 1e3:.1f} ms (median of {options.rounds})")
    for name, value in median.items():
        print(f"  {name:<26} {value * 1e3:9.2f} ms  {value / step_seconds:8.2%} of a step")
    print(f"  needle probes cost 1 % when {median['one needle probe'] / step_seconds * 100:.0f} steps apart")


if __name__ == "__main__":
    main()
