"""The table of kernel times, in parts that are printed as they are measured."""

import json
import sys
from pathlib import Path

import torch

from . import cpu
from .timing import copy_bandwidth
from .versions import versions

PARTS = ("resolvent", "fast_weights", "deep_memory", "trace_attention", "cpu")


def run(*, json_file: Path | None, plot: Path | None, only: str | None) -> int:
    """Measure and print; write the figures and the picture where asked. 2 where there is no GPU to measure."""
    if only == "cpu":
        figures = {"versions": versions(), "cpu": cpu.measure()}
        _write(json_file, figures)
        return 0
    if not torch.cuda.is_available():
        print(
            "no CUDA device: these figures are of a GPU, and there is none to measure; --only cpu measures the rest",
            file=sys.stderr,
        )
        return 2
    figures = {"versions": versions(), "copy_bandwidth": copy_bandwidth()}
    print(", ".join(f"{name} {version}" for name, version in figures["versions"].items()))
    print(f"device copy: {figures['copy_bandwidth'] / 1e12:.2f} TB/s")
    if only in (None, "resolvent"):
        figures["resolvent"] = print_resolvent(figures["copy_bandwidth"])
    if only in (None, "fast_weights"):
        figures["fast_weights"] = print_fast_weights(figures["copy_bandwidth"])
    if only in (None, "trace_attention"):
        figures["trace_attention"] = print_trace_attention()
    if only in (None, "deep_memory"):
        figures["deep_memory"] = print_deep_memory()
    _write(json_file, figures)
    if plot:
        from .roofline import draw_roofline

        draw_roofline(figures, plot)
    return 0


def _write(path: Path | None, figures: dict) -> None:
    if path:
        path.write_text(json.dumps(figures, indent=1) + "\n")


def print_resolvent(bandwidth: float) -> list[dict]:
    """The resolvent rows, each with its share of the copy bandwidth, beside the loop under torch.vmap."""
    from . import resolvent

    rows = []
    for row in resolvent.measure():
        share = row.bytes / row.seconds / bandwidth
        goal = "" if row.target is None else f"(to reach {row.target:.0%})"
        print(
            f"{row.name:45} {row.seconds * 1e6:9.1f} us {row.bytes / 1e6:8.1f} MB {share:7.1%} of copy {goal}",
            flush=True,
        )
        rows.append(row._asdict())
    loop, ours = resolvent.against_the_loop()
    print(f"theta forward 64x4096: {ours * 1e6:.1f} us, loop under torch.vmap {loop * 1e3:.0f} ms: {loop / ours:.0f} x")
    return [*rows, {"name": "theta forward 64x4096", "seconds": ours, "loop_seconds": loop}]


def print_fast_weights(bandwidth: float) -> list[dict]:
    """The fast-weights rows beside their peers; absent peers are named."""
    from . import fast_weights

    rows = []
    for row in fast_weights.measure():
        forward, backward = (
            "       -" if x is None else f"{x:8.0f}" for x in (row.forward_microseconds, row.backward_microseconds)
        )
        name = f"{row.operation} {row.implementation}"
        print(f"{name:55} forward {forward} us  backward {backward} us  {row.note}", flush=True)
        rows.append(row._asdict())
    return rows


def print_trace_attention() -> list[dict]:
    """Trace attention beside torch's flash attention; shares above 1 are faster than it."""
    from . import trace_attention

    rows = []
    for row in trace_attention.measure():
        forward, backward = row.flash_forward / row.forward, row.flash_backward / row.backward
        print(
            f"trace attention {row.width:4} wide, {row.length:6} long  forward {row.forward:8.0f} us, {forward:5.2f} x "
            f"flash  backward {row.backward:8.0f} us, {backward:5.2f} x flash",
            flush=True,
        )
        rows.append(row._asdict())
    return rows


def print_deep_memory() -> list[dict]:
    """The training steps of deep-memory layers beside their peer's."""
    from . import deep_memory

    rows = []
    for row in deep_memory.measure():
        found = "         -" if row.milliseconds is None else (
            f"{row.milliseconds:9.1f} ms {row.tokens_per_second / 1e3:9.1f} k tokens/s {row.peak_gigabytes:7.2f} GB"
        )
        print(f"chunk {row.chunk:3} {row.implementation:50} {found} {row.note}", flush=True)
        rows.append(row._asdict())
    return rows
