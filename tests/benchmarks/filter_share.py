"""Share of a training step that a filter takes: ``python tests/benchmarks/filter_share.py [RECIPE] [--filter NAME]``.

Three models of the recipe, alike but for the filters of their memories: the filter; one that returns what it is given,
which has the cost of the period grid; none at all. Steps of the three, forward and backward without the optimiser,
alternate and medians of their processor time are compared, so that a busy machine slows all three. The filter's own
share is (filter − identity) / filter; with the grid, (filter − none) / filter.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muse_core.building import build_model
from muse_core.contracts import Batch, Period, State, Tokens
from muse_core.recipe.check import check_source
from muse_core.recipe.reading import read_source
from muse_core.training.objectives import NextToken

ROOT = Path(__file__).parents[2]
VOCABULARY = 257


class Identity(nn.Module):
    """A filter that does nothing."""

    def forward(self, before: Tensor, after: Tensor, period: Period, state: State) -> tuple[Tensor, State, dict]:
        return after, None, {}


def build(path: str, filters: list[str]) -> tuple[Any, Any]:
    source = read_source(path, [])
    block = [dict(layer) for layer in source.table["model"]["block"]]
    for layer in block:
        if layer["use"] == "fast-weights":
            layer["filters"] = filters
    source.table["model"]["block"] = block
    checked = check_source(source)
    model, _ = build_model(checked.recipe, checked.registry, vocabulary_size=VOCABULARY)
    return model.train(), checked.recipe


def step(model: Any, batch: Batch) -> float:
    started = time.process_time()
    NextToken()(model, batch, None).total.backward()
    model.zero_grad(set_to_none=True)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=str(ROOT / "recipes" / "phase2_base.toml"))
    parser.add_argument("--filter", default="resonance")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    models: dict[str, Any] = {}
    for name, filters in (("filter", [given.filter]), ("identity", [given.filter]), ("none", [])):
        models[name], recipe = build(given.recipe, filters)
    for module in models["identity"].modules():
        if isinstance(getattr(module, "filters", None), nn.ModuleList):
            module.filters = nn.ModuleList(Identity() for _ in module.filters)
    rows, length = recipe.train.batch_size, recipe.train.sequence_length
    ids = torch.randint(VOCABULARY, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    tokens = Tokens(torch.arange(length).expand(rows, -1))
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(rows, length, dtype=torch.bool), tokens)
    taken: dict[str, list[float]] = {name: [] for name in models}
    for number in range(given.rounds + 1):
        for name, model in models.items():
            seconds = step(model, batch)
            if number:  # the first is warm-up
                taken[name].append(seconds)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    whole = middle["filter"]
    print(f"{Path(given.recipe).name}, {given.filter}, {rows} × {length} tokens, torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}\n")
    print("| filters | forward and backward, ms of processor time (median) | fastest |\n|---|---|---|")
    for name, label in (("filter", given.filter), ("identity", "one that does nothing"), ("none", "none")):
        print(f"| {label} | {1e3 * middle[name]:.0f} | {1e3 * min(taken[name]):.0f} |")
    print(f"\nshare of the filter itself: {1 - middle['identity'] / whole:.1%}; with the period grid: "
          f"{1 - middle['none'] / whole:.1%}")


if __name__ == "__main__":
    main()
