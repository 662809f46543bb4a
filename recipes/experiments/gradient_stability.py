"""Gradient norms of the reported runs of a comparison: medians, largest, and how many steps were far above.

    python recipes/experiments/gradient_stability.py comparisons/trace-attention-rates

Of every variant, over the logged steps of its finished runs after the warm-up: the median norm before clipping, the
largest over that run's median, the share of steps beyond four times it, and the last training loss in nats a token.
"""

import argparse
import math
import statistics
from pathlib import Path

from muse_core.metrics.jsonl import read_rows


def measured(run: Path, warmup: int) -> dict[str, float] | None:
    """One run's figures; NaN norms count as far above. None where no step after the warm-up was logged."""
    rows = [row for row in read_rows(run / "metrics.jsonl") if row.get("event") == "train" and row["step"] >= warmup]
    norms = [float(row["gradient_norm"]) for row in rows]  # of a JSON file: "nan" and "inf" are words there
    finite = [norm for norm in norms if math.isfinite(norm)]
    if not norms:
        return None
    middle = statistics.median(finite) if finite else math.nan
    far = sum(not norm <= 4 * middle for norm in norms) / len(norms)
    peak = max(finite) / middle if finite else math.nan
    return {"median": middle, "peak": peak, "far": far, "loss": float(rows[-1]["loss"])}


def table(comparison: Path, warmup: int) -> list[str]:
    """The lines of the table, and after them one for each run that is left out."""
    lines = [
        "| variant | runs | median norm | largest / median | share beyond 4 x | last training loss |",
        "|---|---|---|---|---|---|",
    ]
    without = []
    for variant in sorted(path for path in comparison.iterdir() if path.is_dir()):
        runs = [path.parent for path in sorted(variant.rglob("summary.json"))]  # those that are done
        figures = {run: measured(run, warmup) for run in runs}
        without += [run for run, one in figures.items() if one is None]
        found = [one for one in figures.values() if one is not None]
        if found:
            mean = {name: statistics.fmean(one[name] for one in found) for name in ("median", "far", "loss")}
            lines.append(
                f"| {variant.name} | {len(found)} | {mean['median']:.3f} | {max(one['peak'] for one in found):.2f} | "
                f"{mean['far']:.1%} | {mean['loss']:.4f} |"
            )
    return lines + [f"{run.relative_to(comparison)}: no step from {warmup} on was logged, left out" for run in without]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--warmup", type=int, default=50, help="steps left out")
    arguments = parser.parse_args()
    print("\n".join(table(arguments.comparison, arguments.warmup)))


if __name__ == "__main__":
    main()
