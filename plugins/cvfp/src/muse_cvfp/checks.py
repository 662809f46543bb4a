"""The five checks of a fixed point, as numbers.

Letters: N tokens, D width.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from muse_core.building import build_model
from muse_core.metrics.jsonl import read_rows
from muse_cvfp.metrics import (
    CONVERGED_BELOW,
    effective_rank,
    gaussian_ceiling,
    of_total,
    rate,
    reduction,
    slope,
    verdict,
)
from muse_cvfp.model import Cvfp
from muse_cvfp.options import FixedPointOptions
from muse_cvfp.policy import Chosen, Seen, choose
from muse_cvfp.stream import Settled, Stream, sequential, settle, sweep

PASSES = 10
RESTARTS = 10
SETTLED = 1e-7
Table = dict[str, float | str]


def options_of(setup: Any) -> FixedPointOptions:
    """Those of the recipe's stage ``fixed-point``, or the defaults where it has none."""
    found = [use.options for use in setup.recipe.stages if use.name == "fixed-point"]
    return found[0] if found else FixedPointOptions()


def chosen_validation(setup: Any, options: FixedPointOptions) -> Chosen:
    """The validation tokens of the checks. Raises DataError where the data policy is broken."""
    seen = Seen(setup.corpus.split("train"), setup.corpus.tokenizer)
    validation = setup.corpus.split("validation")
    return choose(validation, seen, options.validation_tokens, refuse=options.policy == "refuse")


@torch.no_grad()
def checks(model: Cvfp, setup: Any, run: Path) -> dict[str, Table]:
    """Title → name → value; see ``optional_contracts.Checks``. What is exact is the recurrence token by token."""
    options, device = options_of(setup), next(model.parameters()).device
    train = setup.corpus.split("train")
    chosen = chosen_validation(setup, options)
    streams = {
        "training": Stream.of(train.tokens, train.starts, options.tokens).to(device),
        "validation": Stream.of(chosen.tokens, chosen.starts, options.validation_tokens).to(device),
    }
    exact = {split: sequential(model, stream) for split, stream in streams.items()}
    passed = {split: passes(model, stream, torch.zeros_like(exact[split])) for split, stream in streams.items()}
    return {
        "1. effective rank of contexts": ranks(model, setup, streams, exact),
        "2. not the identity": {
            f"{split}: {name}": value
            for split, stream in streams.items() for name, value in identity(model, stream, exact[split]).items()
        },
        "3. fixed point": fixed_point(model, streams, exact, passed, run),
        f"4. validation over {PASSES} passes and {RESTARTS} random restarts": restarts(
            model, streams["validation"], exact["validation"], passed["validation"]
        ),
        "5. convergence rates": rates(streams, passed, exact, options)
        | {"validation passages left out by the data policy": float(len(chosen.left_out))},
    }


@attrs.frozen(eq=False)
class Passes:
    """Sweeps at frozen weights from one start."""

    last: Tensor
    """(N, D)."""
    differences: Tensor
    """(N,): mean squared difference of the last two, by token."""
    losses: list[float]
    """Mean over tokens of the squared difference of each pass from the one before."""


def passes(model: Cvfp, stream: Stream, first: Tensor, count: int = PASSES) -> Passes:
    """``count`` sweeps over the N tokens of ``stream`` from the contexts ``first`` (N, D)."""
    contexts, losses, differences = first, [], first.new_zeros(len(stream))
    for _ in range(count):
        following = sweep(model, stream, contexts)
        differences = (following - contexts).square().mean(-1)
        losses.append(differences.mean().item())
        contexts = following
    return Passes(contexts, differences, losses)


def untrained(model: Cvfp, setup: Any) -> Cvfp:
    """The network as the recipe initialises it, over the embeddings as they are."""
    fresh, _ = build_model(
        setup.recipe, setup.registry, vocabulary_size=model.vocabulary_size, device=next(model.parameters()).device
    )
    assert isinstance(fresh, Cvfp)
    fresh.embedding.load_state_dict(model.embedding.state_dict())
    return fresh.eval()


def ranks(model: Cvfp, setup: Any, streams: dict[str, Stream], exact: dict[str, Tensor]) -> Table:
    """Effective rank of each split's contexts ``exact`` (N, D) and its share of D, beside those of as many Gaussian
    vectors, of an untrained network's contexts and of the token embeddings."""
    fresh, width, table = untrained(model, setup), model.width, Table()
    for split, stream in streams.items():
        table[f"{split}: contexts, {len(stream)} tokens"] = of_total(effective_rank(exact[split]), width)
        table[f"{split}: Gaussian ceiling"] = of_total(gaussian_ceiling(len(stream), width), width)
        table[f"{split}: untrained network"] = of_total(effective_rank(sequential(fresh, stream)), width)
        table[f"{split}: token embeddings"] = of_total(effective_rank(model.embedded(stream.ids)), width)
    return table


def identity(model: Cvfp, stream: Stream, exact: Tensor) -> Table:
    """A context must depend on the one before and be no copy of the token's embedding; ``exact`` (N, D)."""
    x = model.embedded(stream.ids)
    without = model.next_context(torch.zeros_like(exact), x)
    difference = ((exact - without).norm(dim=-1) / without.norm(dim=-1)).mean().item()
    similarity = torch.cosine_similarity(exact, x, dim=-1).mean().item()
    return {
        "relative difference from zero context (over 0.1)": difference,
        "cosine to the token's embedding (under 0.95)": similarity,
    }


def fixed_point(
    model: Cvfp, streams: dict[str, Stream], exact: dict[str, Tensor], passed: dict[str, Passes], run: Path
) -> Table:
    """How far ``passed`` is from a fixed point by split; on validation text how a sweep contracts in float64 and how
    far from the contexts token by token it ends; and the differences that training in ``run`` noted. ``exact`` (N, D)
    gives the number of contexts."""
    table: Table = {}
    for split, stream in streams.items():
        last = passed[split].last
        table[f"{split}: difference of the last two of {PASSES} passes (against {CONVERGED_BELOW:g})"] = (
            passed[split].losses[-1]
        )
        residual = (sweep(model, stream, last) - last).norm() / last.norm()
        table[f"{split}: relative residual after them"] = residual.item()
    text, double = streams["validation"], copy.deepcopy(model).double()
    settled: Settled = settle(double, text, torch.zeros_like(exact["validation"]).double(), tolerance=SETTLED)
    table |= {
        "validation: contraction factor a sweep": settled.contraction,
        f"validation: sweeps until nothing moves by {SETTLED:g}, in float64": float(len(settled.changes)),
        "validation: largest distance from token by token then": (
            (settled.contexts - sequential(double, text)).abs().max().item()
        ),
    }
    rows = read_rows(run / "metrics.jsonl")
    trend = [row["fixed-point/difference"] for row in rows if "fixed-point/difference" in row]
    if trend:
        table["differences over training iterations"] = "  ".join(f"{value:.3g}" for value in trend)
    if len(trend) > 1:
        table["their slope, decades an iteration"] = slope(trend)
    return table


def restarts(model: Cvfp, stream: Stream, exact: Tensor, passed: Passes) -> Table:
    """From zero contexts, and from normal ones of the size of contexts."""
    table = _told("from zero contexts", passed.losses)
    found = []
    for seed in range(RESTARTS):
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(exact.shape, generator=generator).to(exact)
        found.append(passes(model, stream, first))
    worst = max(found, key=lambda one: one.losses[-1])
    table |= _told(f"worst of {RESTARTS} restarts", worst.losses)
    finals = [one.losses[-1] for one in found]
    table["restarts: final loss, smallest and largest"] = f"{min(finals):.3g} … {max(finals):.3g}"
    verdicts = [verdict(one.losses) for one in found]
    table["restarts: verdicts"] = ", ".join(f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts)))
    apart = max(((one.last - exact).norm() / exact.norm()).item() for one in found)
    table["restarts: largest relative distance from token by token"] = apart
    return table


def _told(what: str, losses: list[float]) -> Table:
    return {
        f"{what}: loss by pass": "  ".join(f"{loss:.3g}" for loss in losses),
        f"{what}: initial": losses[0],
        f"{what}: final": losses[-1],
        f"{what}: reduction": f"{reduction(losses):.1f} %",
        f"{what}: slope, decades a pass": slope(losses),
        f"{what}: verdict": verdict(losses),
    }


def rates(
    streams: dict[str, Stream], passed: dict[str, Passes], exact: dict[str, Tensor], options: FixedPointOptions
) -> Table:
    """Shares of each split's tokens whose mean squared difference is below ``options.threshold``: between the last two
    passes, and from the contexts token by token, ``exact`` (N, D)."""
    table: Table = {}
    for split in streams:
        converged = passed[split].differences < options.threshold
        near = (passed[split].last - exact[split]).square().mean(-1) < options.threshold
        table[f"{split}: converged after {PASSES} passes from zero"] = rate(converged)
        table[f"{split}: within the threshold of token by token"] = rate(near)
    return table
