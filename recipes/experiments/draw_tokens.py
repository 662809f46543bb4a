"""Ratios of variants against the tokens that they were trained on, as a table and as a picture.

    python recipes/experiments/draw_tokens.py comparisons/tokens-400 comparisons/tokens-1526 --svg ratio.svg

Each folder is the output of `muse compare recipes/experiments/tokens.plan.toml` with another number of steps. Of each
pair of variants the ratio of bits per byte over the seeds that both have, with the interval of
docs/decisions/intervals.md. The picture needs muse-core[report]. Points of other days, whose runs are elsewhere, come
from a table, `--points docs/results/ratio-against-tokens.csv`; a pair at a number of tokens stands in one of the two.
"""

import argparse
import csv
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
    ("phase5-wide", "gated-deltanet-hybrid"),
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


def kept(table: Path) -> list[dict[str, Any]]:
    """The points of a table with the columns pair, tokens, seeds, first, second (means), ratio, low and high."""
    with table.open(encoding="utf-8", newline="") as rows:
        return [
            {"pair": row["pair"], "tokens": int(row["tokens"]), "seeds": int(row["seeds"])}
            | {"means": [float(row[name]) for name in ("first", "second")]}
            | {name: float(row[name]) for name in ("ratio", "low", "high")}
            for row in csv.DictReader(rows)
        ]


def picture(found: list[dict[str, Any]]) -> Chart:
    """The ratios of each pair over tokens on a logarithmic axis, with their intervals and a line at 1."""
    scale = {"type": "log", "nice": False, "padding": 15}
    axis = {"values": [1.3e7, 5e7, 2e8], "format": ".2s"}
    x = {"field": "tokens", "type": "quantitative", "scale": scale, "axis": axis, "title": "training tokens"}
    y = {"field": "ratio", "type": "quantitative", "scale": {"zero": False}, "title": "ratio of bits per byte"}
    layers = [
        {"mark": {"type": "rule", "strokeDash": [4, 3]}, "encoding": {"y": {"datum": 1, "type": "quantitative"}}},
        {"mark": {"type": "line", "point": {"size": 60}}, "encoding": {"x": x, "y": y}},
        {
            "mark": {"type": "rule", "strokeWidth": 2, "opacity": 0.5},
            "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}},
        },
    ]
    values = [{name: point[name] for name in ("pair", "tokens", "ratio", "low", "high")} for point in found]
    facet = {"field": "pair", "type": "nominal", "title": None, "header": {"labelFontWeight": "bold"}}
    one = {"layer": layers, "width": 210, "height": 190}
    spec = {"$schema": SCHEMA, "data": {"values": values}, "facet": facet, "columns": 3, "autosize": "pad", "spec": one}
    alt = "; ".join(f"{point['pair']} {point['ratio']:.3f} at {point['tokens']:,}" for point in found)
    return Chart(name="tokens", title="Ratio against training tokens", alt=alt, spec=spec)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comparisons", type=Path, nargs="*")
    parser.add_argument("--points", type=Path, help="a table with points of other runs")
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    arguments = parser.parse_args()
    found = points(arguments.comparisons)
    if arguments.points is not None:
        found = sorted(found + kept(arguments.points), key=lambda point: (point["pair"], point["tokens"]))
    places = [(point["pair"], point["tokens"]) for point in found]
    if twice := sorted({place for place in places if places.count(place) > 1}):
        parser.error(f"two points of {twice[0][0]} at {twice[0][1]:,} tokens - leave one of them out")
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
