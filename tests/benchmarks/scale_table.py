"""What scale.py measured, from the records of its cells to one table."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

STEP = 200
"""Steps between checkpoints of which the stall is a share."""
DENSE_BF16 = {"H100": 989.4e12, "H200": 989.4e12}
"""Operations a second of matrix products without sparsity, by the makers' data sheets (SXM)."""


def read(folder: Path, profiled: int) -> dict[str, Any]:
    """From the records: the median speed of the last two thirds of the steps, but for the last ``profiled`` of all."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["event"] == "train"]
    summary = json.loads((folder / "summary.json").read_text())
    last = trained[-1]["step"]
    late = [row["tokens_per_second"] for row in trained if last // 3 < row["step"] <= last - profiled]
    tokens = summary["train_tokens"] / summary["steps"]
    return {
        "tokens_per_second": median(late), "step": tokens / median(late), "parameters": summary["parameters"],
        "loss": trained[-1]["loss"],
    }


def profiled(found: Any) -> str:
    """Operations by their time, and where the device did nothing: from the end of one kernel to the beginning of the
    next."""
    from torch.autograd import DeviceType

    here = any(one.device_type == DeviceType.CUDA for one in found.events())
    key = "self_device_time_total" if here else "self_cpu_time_total"
    told = found.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=90)
    kernels = sorted(
        ((one.time_range.start, one.time_range.end, one.name) for one in found.events()
         if one.device_type == DeviceType.CUDA and not one.is_user_annotation
         and not one.name.startswith(("nccl:", "DistributedData"))),
    )
    gaps, busy, end, before = [], 0.0, -1.0, ""
    for began, ended, name in kernels:
        if end >= 0 and began > end:
            gaps.append((began - end, before, name))
        busy += max(0.0, ended - max(began, end))
        if ended > end:
            end, before = ended, name
    lines = [f"{gap / 1e3:8.3f} ms  {one[:70]} -> {other[:70]}" for gap, one, other in sorted(gaps, reverse=True)[:16]]
    idle = sum(gap for gap, _, _ in gaps)
    return f"busy {busy / 1e3:.1f} ms, idle {idle / 1e3:.1f} ms between {len(kernels)} kernels of about three steps' " \
        "passes and two updates; the longest pauses:\n" + "\n".join([*lines, "", told])


def medians(found: list[dict[str, Any]]) -> dict[str, Any]:
    """One cell of its repeats: medians of what was timed, the most of what was held, and what is the same in all."""
    timed = {
        key: median(values) if (values := [one[key] for one in found if one[key] is not None]) else None
        for key in ("tokens_per_second", "step", "stall", "write")
    }
    speeds = [one["tokens_per_second"] for one in found]
    return found[-1] | timed | {key: max(one[key] for one in found) for key in ("peak", "held", "beside")} | {
        "least": min(speeds), "most": max(speeds), "repeats": len(found),
    }


def table(out: Path) -> str:
    repeats: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(out.glob("*/*/cell.json")):
        repeats.setdefault(path.parent.parent.name, []).append(json.loads(path.read_text()))
    cells = {name: medians(found) for name, found in repeats.items()}
    names = ("cell", "M params", "GPUs", "tokens/s", "slowest - fastest", "times", "a GPU, of one", "of ddp", "MFU",
             "peak GiB", "weights + moments GiB", "of one", "stall s", f"of {STEP} steps", "write s", "loss",
             "GiB of others")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    order = sorted(cells.values(), key=lambda one: (one["cell"].partition("-")[0], one["processes"], one["cell"]))
    for one in order:
        model, processes = one["cell"].partition("-")[0], one["processes"]
        recorded = "-recorded" if one["cell"].endswith("recorded") else ""
        alone = one["cell"] if model == "row" else model + recorded
        base, copies = cells.get(f"{alone}-1"), cells.get(f"{model}-ddp-{processes}")
        peak = next((rate for name, rate in DENSE_BF16.items() if name in one["device"]), None)
        speed = one["tokens_per_second"]
        ratios = {
            "one": speed / processes / base["tokens_per_second"] if base else None,
            "copies": speed / copies["tokens_per_second"] if copies else None,
            "mfu": speed / processes * one["flops"] / peak if peak else None,
            "part": one["held"] / base["held"] if base else None,
            "share": one["stall"] / (STEP * one["step"]) if one["stall"] else None,
            "stall": one["stall"], "write": one["write"],
        }
        told = {name: "-" if value is None else f"{value:.3f}" for name, value in ratios.items()}
        lines.append(
            f"| {one['cell']} | {one['parameters'] / 1e6:.1f} | {processes} | {speed:,.0f} | "
            f"{one['least']:,.0f} - {one['most']:,.0f} | {one['repeats']} | {told['one']} | "
            f"{told['copies']} | {told['mfu']} | {one['peak'] / 2**30:.2f} | {one['held'] / 2**30:.3f} | "
            f"{told['part']} | {told['stall']} | {told['share']} | {told['write']} | {one['loss']:.4f} | "
            f"{one['beside'] / 2**30:.1f} |"
        )
    return "\n".join([*lines, "", f"device: {order[0]['device']}" if order else "nothing was measured"])
