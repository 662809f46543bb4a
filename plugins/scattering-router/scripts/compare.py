"""Runs the recipes of docs/results/experts.md over seeds, several at a time, and prints their table.

    python plugins/scattering-router/scripts/compare.py routers --seeds 3 --at-once 12 --set train.steps=400
    python plugins/scattering-router/scripts/compare.py exit --seeds 3 --at-once 12 --set train.steps=400
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
SCATTERING = "model.block[2].router"
ARMS = {
    "routers": {
        "dense": ("moe_dense", []),
        "mlp": ("moe_mlp", []),
        "scattering": ("moe_scattering", []),
        "scattering-bins": ("moe_scattering", [f'{SCATTERING}.map="bins"']),
        "scattering-resonant": (
            "moe_scattering",
            [f"{SCATTERING}.top_k=1", f"{SCATTERING}.resonant_top_k=3", f"{SCATTERING}.resonance=0.5"],
        ),
    },
    "exit": {
        "no-exit": ("moe_dense", ["model.depth=6"]),
        "learned-0.03": ("early_exit", ["model.exit.ponder=0.03"]),
        "learned-0.1": ("early_exit", ["model.exit.ponder=0.1"]),
        "learned-0.3": ("early_exit", ["model.exit.ponder=0.3"]),
        "phase-0.1": ("early_exit", ["model.exit.ponder=0.1", 'model.exit.halting="phase"']),
    },
}


MEASURES = ("/entropy", "/load_entropy", "/busiest_max", "agreement", "exit/blocks", "saved", "tokens_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="+", choices=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="runs that have not ended by then are stopped")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path, default=Path("runs/experts"))
    given = parser.parse_args()
    todo = [
        (arm, seed, recipe, changes)
        for seed in range(1, given.seeds + 1)
        for group in given.groups
        for arm, (recipe, changes) in ARMS[group].items()
    ]
    deadline, running = time.monotonic() + given.seconds, []
    while todo or running:
        running = [process for process in running if process.poll() is None]
        if time.monotonic() > deadline:
            for process in running:
                process.terminate()
                process.wait()
            break
        while todo and len(running) < given.at_once:
            running.append(start(*todo.pop(0), given))
        time.sleep(0.5)
    print(table([arm for group in given.groups for arm in ARMS[group]], given.seeds, given.out))


def start(arm: str, seed: int, recipe: str, changes: Iterable[str], given: Any) -> subprocess.Popen[bytes]:
    folder = given.out / f"{arm}-{seed}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    sets = [f"seed={seed}", *given.overrides, *changes]
    command = [sys.executable, "-c", "from muse_core.cli.run import main; main()", str(ROOT / f"recipes/{recipe}.toml")]
    command += ["--run-dir", str(folder), *(part for change in sets for part in ("--set", change))]
    with open(folder.with_suffix(".log"), "wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )


def table(arms: Iterable[str], seeds: int, out: Path) -> str:
    """Means over seeds with the deviation of bits per byte; a run that has not ended counts by its last evaluation."""
    lines = [
        "| arm | runs | step | bits/byte | deviation | entropy | load entropy | busiest | agreement | blocks | saved | "
        "tokens/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in arms:
        runs = [found for seed in range(1, seeds + 1) if (found := last(out / f"{arm}-{seed}"))]
        bits = [run["bits_per_byte"] for run in runs]
        if not bits:
            lines.append(f"| {arm} | 0 |")
            continue
        cells = [str(len(runs)), "/".join(sorted({str(run["step"]) for run in runs})), f"{statistics.mean(bits):.4f}"]
        cells.append(f"{statistics.stdev(bits):.4f}" if len(bits) > 1 else "")
        for name in MEASURES:
            values = [value for run in runs for key, value in run.items() if key.endswith(name)]
            cells.append(f"{statistics.mean(values):.3f}" if values else "")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def last(folder: Path) -> dict[str, Any] | None:
    """The newest held-out evaluation of a run, its last agreement and share of FLOPs saved; None without one."""
    try:
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    except FileNotFoundError:
        return None
    found = next((row for row in reversed(rows) if row["event"] in ("eval", "final")), None)
    if found is None:
        return None
    train = [row for row in rows if row["event"] == "train"]
    probes = [row for row in rows if "routing/agreement" in row]
    found = {"step": train[-1]["step"]} | found | {"tokens_per_second": train[-1]["tokens_per_second"]}
    if probes:
        found["agreement"] = probes[-1]["routing/agreement"]
    if "exit/flops_spent_sum" in found:
        spent, saved = found["exit/flops_spent_sum"], found["exit/flops_saved_sum"]
        found["saved"] = saved / (spent + saved)
    return found


if __name__ == "__main__":
    main()
