"""Print the table of kernel times: python -m muse_kernels.benchmarks [--json FILE] [--plot FILE] [--only resolvent]."""

import argparse
import json
import sys
from pathlib import Path

import torch

from . import fast_weights, resolvent
from .timing import copy_bandwidth


def main() -> int:
    """Measure, print, and write what was asked for; 1 where there is no GPU to measure."""
    parser = argparse.ArgumentParser(prog="muse_kernels.benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--plot", type=Path, help="draw bytes against time beside the copy bandwidth (matplotlib)")
    parser.add_argument("--only", choices=("resolvent", "fast_weights"), help="one family of operations")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: these figures are of a GPU, and there is none to measure", file=sys.stderr)
        return 1
    figures = {"versions": fast_weights.versions(), "copy_bandwidth": copy_bandwidth()}
    print(figures["versions"])
    print(f"device copy: {figures['copy_bandwidth'] / 1e12:.2f} TB/s")
    if arguments.only != "fast_weights":
        figures["resolvent"] = print_resolvent(figures["copy_bandwidth"])
        if arguments.plot:
            draw_roofline(figures, arguments.plot)
    if arguments.only != "resolvent":
        figures["fast_weights"] = print_fast_weights()
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def print_resolvent(bandwidth: float) -> list[dict]:
    """The resolvent rows as they are measured, each with its share of the copy bandwidth."""
    rows = []
    for row in resolvent.measure():
        share = row.bytes / row.seconds / bandwidth
        goal = "" if row.target is None else f"(to reach {row.target:.0%})"
        print(f"{row.name:45} {row.seconds * 1e6:9.1f} us {row.bytes / 1e6:8.1f} MB {share:7.1%} of copy {goal}")
        rows.append(row._asdict())
    loop, ours = resolvent.against_the_loop()
    print(f"theta forward 64x4096: {ours * 1e6:.1f} us, loop under torch.vmap {loop * 1e3:.0f} ms: {loop / ours:.0f} x")
    return [*rows, {"name": "loop under torch.vmap 64x4096", "seconds": loop, "ours": ours}]


def print_fast_weights() -> list[dict]:
    """The fast-weights rows beside their peers; absent peers are named."""
    rows = []
    for row in fast_weights.measure():
        print(row)
        rows.append(row._asdict())
    return rows


def draw_roofline(figures: dict, path: Path) -> None:
    """Bytes against time, with the line that the copy bandwidth allows."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: matplotlib is absent; pip install 'muse-kernels[benchmarks]'", file=sys.stderr)
        return
    rows = [row for row in figures["resolvent"] if "bytes" in row]
    axes = (figure := Figure(figsize=(7, 5), layout="constrained")).subplots()
    for row in rows:
        axes.loglog(row["bytes"] / 1e6, row["seconds"] * 1e6, "o", label=row["name"])
    ends = [min(row["bytes"] for row in rows) / 2, max(row["bytes"] for row in rows) * 2]
    axes.loglog([b / 1e6 for b in ends], [b / figures["copy_bandwidth"] * 1e6 for b in ends], "k-", label="device copy")
    axes.set(xlabel="megabytes that must move", ylabel="microseconds", title=figures["versions"]["device"])
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
