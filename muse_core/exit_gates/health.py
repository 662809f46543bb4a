"""Gates that read the training run: no value that is not finite, and perplexity followed rightly."""

from __future__ import annotations

import math

import torch

from muse_core.exit_gates.bench import Bench
from muse_core.exit_gates.findings import Finding, failed, judged

WATCHED = ("loss", "perplexity", "bits_per_byte", "gradient_norm")
EXACT = 1e-9


def finite_steps(bench: Bench) -> Finding:
    """Every planned step was done and recorded, nothing intervened, every number and every parameter is finite."""
    run = bench.trained
    rows = run.rows("train")
    bad = [row["step"] for row in rows if row["gradient_nonfinite"] or any(not _finite(row[key]) for key in WATCHED)]
    acted = run.events("skip", "rollback", "halt", "incident")
    broken = [name for name, value in run.setup.model.named_parameters() if not bool(torch.isfinite(value).all())]
    done = len({row["step"] for row in rows})
    figure = f"{done} of {bench.steps} steps, {len(bad)} with a non-finite value, {len(acted)} interventions"
    causes = [
        *([run.halted] if run.halted else []),
        *([f"first non-finite value at step {bad[0]}"] if bad else []),
        *([f"step {acted[0]['step']}: {acted[0]['event']} ({acted[0].get('reason', '')})"] if acted else []),
        *([f"{broken[0]} is not finite"] if broken else []),
        *([f"{bench.steps - done} steps were not done"] if done < bench.steps else []),
    ]
    return judged(
        not causes, figure, "; ".join(causes), steps=done, nonfinite_steps=len(bad), interventions=len(acted),
        nonfinite_parameters=len(broken),
    )


def perplexity_followed(bench: Bench) -> Finding:
    """``ppl_delta`` of every row, computed again from the losses."""
    last = {row["step"]: row for row in bench.trained.rows("train")}
    steps = sorted(last)
    missing = [step for step in steps if "ppl_delta" not in last[step]]
    if missing or len(steps) < 2:
        what = f"row of step {missing[0]} has no ppl_delta" if missing else bench.trained.halted or "too few rows"
        return failed(f"{len(steps)} rows, {len(missing)} without ppl_delta", what)
    worst = 0.0
    for before, step in zip(steps, steps[1:]):
        expected = math.exp(last[step]["loss"]) - math.exp(last[before]["loss"])
        stated = last[step]["ppl_delta"]
        scale = max(1.0, math.exp(last[step]["loss"]))
        worst = max(worst, abs(float(stated) - expected) / scale if stated is not None else math.inf)
    good = last[steps[0]]["ppl_delta"] is None and worst <= EXACT
    return judged(
        good,
        f"{len(steps) - 1} differences computed again, largest deviation {worst:.0e} of the perplexity",
        "ppl_delta in metrics.jsonl is not the difference of the perplexities beside it",
        rows=len(steps), largest_deviation=worst if math.isfinite(worst) else str(worst),
    )


def _finite(value: float | str) -> bool:
    return math.isfinite(float(value))
