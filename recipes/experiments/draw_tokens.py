"""Ratios of variants against the tokens that they were trained on, as a table and as a picture.

    python recipes/experiments/draw_tokens.py comparisons/tokens-400 comparisons/tokens-1526 --svg ratio.svg

Each folder is the output of `muse compare recipes/experiments/tokens.plan.toml` with another number of steps. Of each
pair of variants the ratio of bits per byte over the seeds that both have, with the interval of
docs/decisions/intervals.md. The picture needs muse-core[report].
"""

import argparse
from pathlib import Path
from typing import Any

from muse_core.comparison.ratio import paired, read_rows
from muse_core.metrics.finished import read_summary
from muse_core.report.charts import SCHEMA, Chart
from muse_core.report.drawing import svg

PAIRS = [
    ("phase5", "gated-deltanet"),
    ("mamba3", "gated-deltanet"),
    ("phase5", "mamba3"),
    ("phase2", "gated-convolution"),
]


def done(comparison: Path, variant: str) -> dict[int, Path]:
    """Finished reported runs of a variant by seed."""
    found = (comparison / variant).glob("test-*seed-*/summary.json")
    return {int(path.parent.name.rpartition("-")[2]): path.parent for path in found}


def points(comparisons: list[Path]) -> list[dict[str, Any]]:
    """Of each pair in each comparison that has it: tokens, ratio, interval, seeds and both means in bits per byte."""
    found = []
    for one, other in PAIRS:
        for comparison in comparisons:
            runs = [done(comparison, name) for name in (one, other)]
            seeds = sorted(runs[0].keys() & runs[1].keys())
            if not seeds:
                continue
            told = [[read_summary(of[seed]) for seed in seeds] for of in runs]
            rows = [
                {
                    seed: read_rows(of[seed], "bits_per_byte", one["held_out_bits_per_byte"])
                    for seed, one in zip(seeds, each, strict=True)
                }
                for of, each in zip(runs, told, strict=True)
            ]
            ratio = paired(rows[0], rows[1], ratio=True)
            means = [sum(each["held_out_bits_per_byte"] for each in of) / len(seeds) for of in told]
            found.append(
                {"pair": f"{one} / {other}", "tokens": told[0][0]["train_tokens"], "seeds": len(seeds), "means": means}
                | {"ratio": ratio.value, "low": ratio.low, "high": ratio.high}
            )
    return sorted(found, key=lambda point: (point["pair"], point["tokens"]))


def picture(found: list[dict[str, Any]]) -> Chart:
    """The ratios over tokens on a logarithmic axis, with their intervals and a line at 1."""
    x = {"field": "tokens", "type": "quantitative", "scale": {"type": "log"}, "title": "training tokens"}
    y = {"field": "ratio", "type": "quantitative", "scale": {"zero": False}, "title": "ratio of bits per byte"}
    color = {"field": "pair", "type": "nominal", "title": None}
    layers = [
        {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"y": {"datum": 1, "type": "quantitative"}}},
        {"mark": {"type": "line", "point": {"size": 60}}, "encoding": {"x": x, "y": y, "color": color}},
        {
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
            "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": color},
        },
    ]
    values = [{name: point[name] for name in ("pair", "tokens", "ratio", "low", "high")} for point in found]
    spec = {"$schema": SCHEMA, "data": {"values": values}, "layer": layers, "height": 300, "autosize": "fit"}
    alt = "; ".join(f"{point['pair']} {point['ratio']:.3f} at {point['tokens']:,}" for point in found)
    return Chart(name="tokens", title="Ratio against training tokens", alt=alt, spec=spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparisons", type=Path, nargs="+")
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    arguments = parser.parse_args()
    found = points(arguments.comparisons)
    if not found:
        parser.error("no seed is done in both variants of a pair in any of these folders")
    print("| pair | tokens | seeds | bits per byte | ratio | interval |\n|---|---|---|---|---|---|")
    for point in found:
        first, second = point["means"]
        print(
            f"| {point['pair']} | {point['tokens']:,} | {point['seeds']} | {first:.4f} / {second:.4f} | "
            f"{point['ratio']:.4f} | {point['low']:.4f} to {point['high']:.4f} |"
        )
    if arguments.svg is not None:
        arguments.svg.write_text(svg(picture(found)), encoding="utf-8")


if __name__ == "__main__":
    main()
