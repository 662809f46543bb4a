"""What the stage fixed-point makes of an untrained network by initial variance, weight and kind of diversity.

    python plugins/cvfp/scripts/variants.py --tokens 3200 --iterations 12

Embeddings as initialised (random, normalised); width, depth and text of the recipe. For each variant, before and
after: growth of a small perturbation a token, effective rank of validation contexts, mean squared difference of the
last of ten passes from zero contexts, share of tokens under 0.1 there; and the training measures of the last iteration.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from muse_cvfp.checks import passes
from muse_cvfp.fixed_point import Iteration, Slices
from muse_cvfp.metrics import effective_rank, of_total, rate
from muse_cvfp.model import Cvfp
from muse_cvfp.options import FixedPointOptions
from muse_cvfp.stream import Stream, sequential

from muse_core.recipe import read_recipe
from muse_core.training.setup import set_up

LOG_DET = {"covariance": "log-det"}
VARIANTS: list[tuple[float, dict[str, Any]]] = [
    (0.05, LOG_DET),
    (0.2, LOG_DET),
    (0.5, LOG_DET),
    (1.0, LOG_DET),
    (0.2, LOG_DET | {"diversity_weight": 0.5}),
    (0.2, LOG_DET | {"diversity_weight": 0.99}),
    (0.2, {"covariance": "vicreg"}),
    (0.2, {"diversity": "mean-deviation"}),
    (0.2, LOG_DET | {"carry": "wrap"}),
]


@torch.no_grad()
def growth(model: Cvfp, stream: Stream, contexts: torch.Tensor, tokens: int = 30, size: float = 1e-3) -> float:
    """Geometric mean a token of what becomes of a small random change of a context."""
    x, found = model.embedded(stream.ids), []
    for start in range(50, 550, 100):
        noise = torch.randn(model.width, generator=torch.Generator().manual_seed(start))
        c = contexts[start] + size * noise
        for token in range(start + 1, start + 1 + tokens):
            c = model.next_context(c, x[token])
        found.append(math.log((c - contexts[start + tokens]).norm() / (size * noise.norm())) / tokens)
    return math.exp(sum(found) / len(found))


@torch.no_grad()
def told(model: Cvfp, stream: Stream) -> str:
    exact = sequential(model, stream)
    passed = passes(model, stream, torch.zeros_like(exact))
    return (
        f"{growth(model, stream, exact):.3f} | {of_total(effective_rank(exact), model.width)} | "
        f"{passed.losses[-1]:.2g} | {rate(passed.differences < 0.1)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="recipes/cvfp_base.toml")
    parser.add_argument("--tokens", type=int, default=3200)
    parser.add_argument("--iterations", type=int, default=12)
    given = parser.parse_args()
    checked = read_recipe(given.recipe, ['train.device="cpu"'])
    setup = set_up(checked.recipe, checked.registry)
    model: Any = setup.model
    train, held = (setup.corpus.split(name) for name in ("train", "validation"))
    stream, validation = Stream.of(train.tokens, train.starts, given.tokens), Stream.of(held.tokens, held.starts, 640)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    print("| variance, options | | growth | rank | last of ten passes | under 0.1 |\n|---|---|---|---|---|---|")
    for variance, more in VARIANTS:
        model.load_state_dict(start)
        for block in model.context_blocks:
            block.mixing.weight.data.mul_(math.sqrt(variance / 0.2))
        print(f"| {variance} {more or ''} | before | {told(model, validation)} |", flush=True)
        options = FixedPointOptions(
            tokens=given.tokens, tokens_per_step=800, iterations=given.iterations, early_stop=1.0, patience=1000, **more
        )
        objective, data = Iteration(stream, options), Slices(stream, options.slice)
        chosen = [*model.context_blocks.parameters()] + ([] if options.carry == "wrap" else [model.start])
        adam, last = torch.optim.AdamW(chosen, lr=options.learning_rate, weight_decay=0.0), {}
        for step in range(given.iterations * data.count):
            batch = data.batch(step)
            result = objective(model, batch, None)
            adam.zero_grad()
            (result.total / batch.inputs.shape[1]).backward()
            adam.step()
            last = result.metrics
        tail = ", ".join(f"{name.partition('/')[2]} {value.item():.3g}" for name, value in last.items())
        print(f"| | after: {tail} | {told(model, validation)} |", flush=True)


if __name__ == "__main__":
    main()
