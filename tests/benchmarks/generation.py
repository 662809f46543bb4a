"""Tokens a second while the context grows: ``python tests/benchmarks/generation.py [RECIPE] [--longest 65536]``.

Builds the recipe's model untrained, reads one random text and, at each context length, draws tokens one by one. Every
round visits all lengths from kept states, there and back, so that a slow moment of the machine falls on all of them
alike; what counts is the ratio within the run. Seconds are the process's own processor time, which other processes
disturb less than the clock on the wall. Prints a table, with the bytes of state that generation carries.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from muse_core.building import build_model
from muse_core.contracts import Tokens
from muse_core.model.plan import periods
from muse_core.recipe import read_recipe
from muse_core.testing.sequences import leaves

ROOT = Path(__file__).parents[2]
VOCABULARY = 257
PIECE = 512


def read(model: Any, ids: torch.Tensor, state: Any, done: int, period: int) -> tuple[torch.Tensor, Any]:
    positions = torch.arange(done, done + ids.shape[1])[None]
    output = model(ids, state, Tokens(positions, offset=done % period))
    return output.hidden, output.state


def draw(model: Any, state: Any, done: int, period: int, count: int) -> float:
    """Seconds of processor time for ``count`` tokens after ``done``."""
    token = torch.zeros(1, 1, dtype=torch.long)
    started = time.process_time()
    for step in range(count):
        hidden, state = read(model, token, state, done + step, period)
        token = model.logits(hidden)[:, -1].argmax(-1, keepdim=True)
    return time.process_time() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default=str(ROOT / "recipes" / "phase2_base.toml"))
    parser.add_argument("--longest", type=int, default=65_536)
    parser.add_argument("--tokens", type=int, default=16, help="drawn in each round at each length")
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    checked = read_recipe(given.recipe)
    model, _ = build_model(checked.recipe, checked.registry, vocabulary_size=VOCABULARY)
    model.eval()
    grid = 1
    for period in periods(checked.recipe.model.options):
        grid *= period
    lengths = [1024 << power for power in range(20) if 1024 << power <= given.longest]
    text = torch.randint(VOCABULARY, (1, given.longest), generator=torch.Generator().manual_seed(0))
    states, state = {}, None
    for done in range(0, given.longest, PIECE):
        _, state = read(model, text[:, done : done + PIECE], state, done, grid)
        if done + PIECE in lengths:
            states[done + PIECE] = state
    draw(model, state, given.longest, grid, 8)
    seconds: dict[int, list[float]] = {length: [] for length in lengths}
    for number in range(given.rounds):
        for length in lengths if number % 2 == 0 else reversed(lengths):
            seconds[length].append(draw(model, states[length], length, grid, given.tokens))
    rates = {length: given.tokens / statistics.median(taken) for length, taken in seconds.items()}
    print(f"{Path(given.recipe).name}, torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"load {os.getloadavg()[0]:.1f}\n")
    print("| context | tokens/s of processor time (median) | over the shortest | state, bytes |\n|---|---|---|---|")
    for length in lengths:
        size = sum(value.untyped_storage().nbytes() for value in leaves(states[length]).values())
        print(f"| {length:,} | {rates[length]:.1f} | {rates[length] / rates[lengths[0]]:.2f} | {size:,} |")


if __name__ == "__main__":
    main()
