"""The picture of the table: bytes that must move against time, beside what the copy bandwidth allows."""

import sys
from pathlib import Path

from .fast_weights import BYTES


def points(figures: dict) -> list[tuple[str, float, float]]:
    """(name, bytes, seconds) of every row whose bytes are counted."""
    found = [(row["name"], row["bytes"], row["seconds"]) for row in figures.get("resolvent", ()) if "bytes" in row]
    for row in figures.get("fast_weights", ()):
        if row["implementation"] == "muse":
            for direction, count in BYTES.items():
                microseconds = row[f"{direction}_microseconds"]
                found.append((f"fast weights {row['operation']} {direction}", count, microseconds * 1e-6))
    return found


def draw_roofline(figures: dict, path: Path) -> None:
    """Draw it; says on stderr what is missing where matplotlib is."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("no picture: matplotlib is absent; pip install 'muse-kernels[benchmarks]'", file=sys.stderr)
        return
    axes = (figure := Figure(figsize=(7, 5), layout="constrained")).subplots()
    measured = points(figures)
    for place, (name, count, seconds) in enumerate(measured):
        # The colours come again after ten.
        axes.loglog(count / 1e6, seconds * 1e6, "os^"[place // 10 % 3], label=name)
    counts = [count for _, count, _ in measured]
    ends = [min(counts) / 2, max(counts) * 2]
    axes.loglog([b / 1e6 for b in ends], [b / figures["copy_bandwidth"] * 1e6 for b in ends], "k-", label="device copy")
    axes.set(xlabel="megabytes that must move", ylabel="microseconds", title=figures["versions"]["device"])
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)
