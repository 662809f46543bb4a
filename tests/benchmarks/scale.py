"""Speed, memory and checkpoints of models of about 125 million parameters on 1, 2 and 4 GPUs of one host, as a table.

    python tests/benchmarks/scale.py --processes 1 2 4 --out FOLDER

For each number of processes one start of torchrun trains every model with copies (DDP) and, from two on, with divided
weights (FSDP2): the rows of a batch grow with the processes, so that equal tokens/s a GPU is a scaling of 1. The
causality gate, which every real run has, is left out. ``--small`` is for a machine without GPUs.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

BLOCKS = {
    "transformer": [{"use": "attention", "heads": 16}, {"use": "feed-forward"}],
    "phase2": [
        {"use": "resolvent", "heads": 64, "potential": ["non-hermitian"]},
        {"use": "fast-weights", "rule": "delta", "heads": 8, "period": 64, "filters": ["snr"]},
        {"use": "feed-forward"},
    ],
}
SIZES = {"transformer": {"width": 1024, "depth": 10}, "phase2": {"width": 1024, "depth": 7}}


def recipe(model: str, processes: int, shard: bool, chosen: argparse.Namespace) -> dict[str, Any]:
    size = {"width": 64, "depth": 2} if chosen.small else SIZES[model]
    rows = 2 if chosen.small else chosen.rows
    return {
        "name": f"{model}-{processes}{'-fsdp' if shard else ''}",
        "data": {"use": "state-of-the-union", "tokenizer": "bytes"},
        "model": size | {"block": BLOCKS[model]},
        "parallel": {"data": 1, "shard": "auto"} if shard else {},
        "train": {
            "steps": chosen.steps, "batch_size": rows * processes, "micro_batch": rows,
            "sequence_length": 128 if chosen.small else 2048, "warmup_steps": 1, "log_every": 5,
            "optimizer": chosen.optimizer, "compile": chosen.compile,
        },
        "evaluate": {"every": 10**6, "tokens": 2048, "final_tokens": 2048},
        "checkpoint": {"every": chosen.steps // 3, "keep": 1, "background": True},
    }


def measure(chosen: argparse.Namespace) -> None:
    """One process of a start: every cell in turn; rank 0 writes what was measured."""
    import torch

    from muse_core.cli.launch import fresh
    from muse_core.parallel.meeting import meeting
    from muse_core.recipe import check_table
    from muse_core.training import checkpointer, loop, setup
    from muse_core.training.shards import own_part

    setup.Setup.causality_gate = lambda self: "causality gate: left out"
    commit, write, run = checkpointer.Checkpointer.commit, checkpointer.Checkpointer._write, loop.Loop.run
    stalls: list[float] = []
    writes: list[float] = []
    held: dict[str, float] = {}

    def timed_commit(self: Any) -> None:
        self.settle()  # between two checkpoints of a real run there is time for the writing of the first
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        began = time.perf_counter()
        commit(self)
        stalls.append(time.perf_counter() - began)

    def timed_write(self: Any, *given: Any) -> Any:
        began = time.perf_counter()
        row = write(self, *given)
        writes.append(time.perf_counter() - began)
        return row

    def watched_run(self: Any) -> None:
        run(self)
        parts = [own_part(one) for one in self.state.optimizers.held()]
        held["parameters_and_moments"] = sum(one.numel() * one.element_size() for one in parts)

    checkpointer.Checkpointer.commit, checkpointer.Checkpointer._write = timed_commit, timed_write
    loop.Loop.run = watched_run
    with meeting() as ranks:
        for model in chosen.models:
            for shard in (False, True)[: 2 if ranks.size > 1 else 1]:
                table = recipe(model, ranks.size, shard, chosen)
                stalls.clear()
                writes.clear()
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                folder = Path(chosen.out) / table["name"]
                fresh(check_table(table), None, folder, allow_drift=False, ranks=ranks)
                peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
                parts = ranks.gather({"peak": peak, **held})
                if ranks.rank == 0:
                    found = read(folder) | {
                        "model": model, "processes": ranks.size, "shard": shard,
                        "peak": max(one["peak"] for one in parts),
                        "held": max(one["parameters_and_moments"] for one in parts),
                        # The first is of weights without moments; the second allocates the host's memory.
                        "stall": stalls[-1], "write": writes[-1],
                        "device": str(torch.cuda.get_device_name()) if peak else "cpu",
                    }
                    (folder / "cell.json").write_text(json.dumps(found))
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()


def read(folder: Path) -> dict[str, Any]:
    """From the records: the median speed after the first third of the steps."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if row["event"] == "train"]
    summary = json.loads((folder / "summary.json").read_text())
    late = [row["tokens_per_second"] for row in trained if row["step"] > trained[-1]["step"] // 3]
    return {"tokens_per_second": median(late), "parameters": summary["parameters"], "loss": trained[-1]["loss"]}


def start(processes: int, chosen: argparse.Namespace) -> None:
    """torchrun with so many processes of ``measure``; a start that fails is said and leaves its cells out."""
    own = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    given = [sys.executable] if processes == 1 else own
    command = [*given, __file__, "--measure", *sys.argv[1:]]
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"), "MUSE_REPORT": "0"}
    with open(Path(chosen.out) / f"log-{processes}.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if done.returncode:
        print(f"{processes} processes: exit {done.returncode}, see log-{processes}.txt", file=sys.stderr)


def table(out: Path) -> str:
    cells = [json.loads(path.read_text()) for path in sorted(out.glob("*/cell.json"))]
    alone = {one["model"]: one for one in cells if one["processes"] == 1}
    copies = {(one["model"], one["processes"]): one for one in cells if not one["shard"]}
    names = ("model", "M params", "GPUs", "way", "tokens/s", "scaling", "of DDP", "peak GiB", "weights + moments GiB",
             "of one", "stall s", "write s", "loss")
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for one in sorted(cells, key=lambda one: (one["model"], one["processes"], one["shard"])):
        base, beside = alone.get(one["model"]), copies.get((one["model"], one["processes"]))
        scaling = one["tokens_per_second"] / one["processes"] / base["tokens_per_second"] if base else float("nan")
        against = one["tokens_per_second"] / beside["tokens_per_second"] if beside else float("nan")
        part = one["held"] / base["held"] if base else float("nan")
        lines.append(
            f"| {one['model']} | {one['parameters'] / 1e6:.1f} | {one['processes']} | "
            f"{'FSDP2' if one['shard'] else 'DDP' if one['processes'] > 1 else '-'} | "
            f"{one['tokens_per_second']:,.0f} | {scaling:.3f} | {against:.3f} | {one['peak'] / 2**30:.2f} | "
            f"{one['held'] / 2**30:.3f} | {part:.3f} | {one['stall']:.3f} | {one['write']:.2f} | {one['loss']:.3f} |"
        )
    return "\n".join([*lines, "", f"device: {cells[0]['device']}" if cells else "nothing was measured"])


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    asked.add_argument("--models", nargs="+", default=list(BLOCKS), choices=list(BLOCKS))
    asked.add_argument("--steps", type=int, default=40)
    asked.add_argument("--rows", type=int, default=16, help="rows of 2,048 tokens a process and step")
    asked.add_argument("--optimizer", default="adamw")
    asked.add_argument("--compile", action="store_true")
    asked.add_argument("--small", action="store_true")
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if options.measure:
        measure(options)
    else:
        options.out.mkdir(parents=True, exist_ok=True)
        for count in options.processes:
            start(count, options)
        print(table(options.out))
