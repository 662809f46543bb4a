"""Gradient norms of the reported runs of a comparison: medians, largest, and how many steps were far above.

    python recipes/experiments/gradient_stability.py comparisons/trace-attention-rates

Of every variant, over the logged steps of its finished runs after the warm-up: the median norm before clipping, the
largest over that run's median, the share of steps beyond four times it, and the last training loss in nats a token.
"""

import argparse
import statistics
from pathlib import Path

from muse_core.metrics.jsonl import read_rows


def measured(run: Path, warmup: int) -> dict[str, float]:
    """One run's figures; NaN norms count as far above."""
    rows = [row for row in read_rows(run / "metrics.jsonl") if row.get("event") == "train" and row["step"] >= warmup]
    norms = [row["gradient_norm"] for row in rows]
    finite = [norm for norm in norms if isinstance(norm, int | float) and norm == norm]
    middle = statistics.median(finite)
    far = len(norms) - sum(norm <= 4 * middle for norm in finite)
    return {"median": middle, "peak": max(finite) / middle, "far": far / len(norms), "loss": rows[-1]["loss"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--warmup", type=int, default=50, help="steps left out")
    arguments = parser.parse_args()
    print("| variant | runs | median norm | largest / median | share beyond 4 x | last training loss |")
    print("|---|---|---|---|---|---|")
    for variant in sorted(path for path in arguments.comparison.iterdir() if path.is_dir()):
        runs = [path.parent for path in sorted(variant.rglob("summary.json"))]  # those that are done
        found = [measured(run, arguments.warmup) for run in runs]
        if not found:
            continue
        mean = {name: statistics.fmean(row[name] for row in found) for name in ("median", "far", "loss")}
        print(
            f"| {variant.name} | {len(found)} | {mean['median']:.3f} | {max(row['peak'] for row in found):.2f} | "
            f"{mean['far']:.1%} | {mean['loss']:.4f} |"
        )


if __name__ == "__main__":
    main()
