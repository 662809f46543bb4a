"""Exact recall of a run trained on the source needle, by distance, with its memory and with two controls.

    python recipes/experiments/needle_recall.py RUN --distances 256 1024 4096

The text with the needles is read, then the questions from the state that it left: as it is, emptied, or another row's.
A number is recalled when each of its digits has the highest score, given those before it; guessing has 10^−digits.
The last columns are with the memory: the digits of a number one by one, and whole numbers by the order of questions.
Who knows the numbers, but not whose they are, and leaves out those asked before has 1/K, 1/(K − 1), …, 1 in that order.
"""

import argparse
from pathlib import Path

import attrs
import numpy as np
import torch
from torch.utils import _pytree as pytree

from muse_core.contracts import Batch, Tokens
from muse_core.data.corpus import open_corpus
from muse_core.training.trained import open_trained


@torch.no_grad()
def recalled(model, batch: Batch, questions: int, needles: int, digits: int) -> list[float]:
    """Share of numbers recalled, with the memory and by the two controls; with the memory that of each digit, and of
    numbers by the order of the questions, which are the last ``questions`` tokens of the inputs."""
    device = next(model.parameters()).device
    ids, labels, counted = (side.to(device) for side in batch[:3])
    rows, length = ids.shape
    positions = torch.arange(length, device=device).expand(rows, length)
    first = length - questions
    state = model(ids[:, :first], None, Tokens(positions[:, :first])).state
    shuffled = pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.roll(1, 0), state)
    numbers, single = [], []
    for given in (state, None, shuffled):
        hidden = model(ids[:, first:], given, Tokens(positions[:, first:], offset=first)).hidden
        right = model.logits(hidden).argmax(-1) == labels[:, first:]
        asked = right[counted[:, first:]].view(rows, needles, digits)
        whole = asked.all(-1).double()
        numbers.append(whole.mean().item())
        single = single or [*asked.double().mean((0, 1)).tolist(), *whole.mean(0).tolist()]
    return numbers + single


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--distances", type=int, nargs="+", default=[256, 1024, 4096])
    parser.add_argument("--rows", type=int, default=64, help="examples of a distance")
    parser.add_argument("--device", default=None)
    chosen = parser.parse_args()
    setup, _ = open_trained(chosen.run, device=chosen.device)
    source, model = open_corpus(setup.recipe.data, seed=setup.recipe.data.split_seed).source, setup.model.eval()
    options = source.options
    questions = options.needles * (24 + options.digits) - 1
    print("| distance | recalled | emptied memory | another row's | digits | in order |\n|---|---|---|---|---|---|")
    for distance in chosen.distances:
        source.options = attrs.evolve(options, distance=(distance, distance))
        length = distance + options.needles * (49 + 2 * options.digits) + 32
        sums = []
        for start in range(0, chosen.rows, 16):
            batch = source.examples("test", np.arange(start, start + 16), length)
            with setup.precision():
                sums.append(recalled(model, batch, questions, options.needles, options.digits))
        shares = [f"{value:.1%}" for value in np.mean(sums, 0)]
        digits, order = shares[3 : 3 + options.digits], shares[3 + options.digits :]
        print(f"| {distance} | {' | '.join(shares[:3])} | {', '.join(digits)} | {', '.join(order)} |", flush=True)


if __name__ == "__main__":
    main()
