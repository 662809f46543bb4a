"""Speed, memory and checkpoints of models of about 125 million parameters, and of one row of a million tokens, on 1, 2
and 4 GPUs of one host, as a table.

    python tests/benchmarks/scale.py --processes 1 2 4 --repeats 3 --out FOLDER [--seconds 230]

Cells (``--cells`` chooses): a model on one GPU, plain and compiled; on several with copies (ddp), with divided weights
(fsdp) and with two divided copies (hybrid, from four processes on), where the rows of a batch grow with the processes,
so that equal tokens/s a GPU is a scaling of 1; and one row of ``--row`` tokens whose tokens are divided among the
processes: as recipes/experiments/million_tokens.toml has it (row), twice as wide (row-wide), and with nothing computed
again in the backward pass (row-kept). ``compiled``: the model as a whole; ``blocks``: block by block; ``recorded``:
with ``train.cuda_graph``. Rows are read as one text, as is usual
where a Transformer is measured; ``--documents`` keeps documents apart by masks, as recipes do. Cells of one process run
side by side, one on each GPU. A cell that fails or takes longer than ``--limit`` is said and left out; the others are
measured. ``--repeats`` measures all cells so many times over, one after the other, and the table has the median of
each, the slowest and the fastest. The causality gate, which every real run has, is left out. ``--small`` is for a
machine without GPUs. ``--profile`` names cells of which the operations of the last steps are written, as
CELL-PROCESSES.profile.txt, with the time in which no kernel ran.

Before a cell begins its GPUs are to hold nothing of other processes: where they do it waits for ``--wait`` seconds, and
what is still there then is said and stands in the table.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from scale_processes import EMPTY, Beside, devices, emptied, end
from scale_table import profiled, read, table

RESOLVENT = {"use": "resolvent", "heads": 64, "potential": ["non-hermitian"]}
BEGAN = time.monotonic()
BLOCKS = {
    "transformer": [{"use": "attention", "heads": 16}, {"use": "feed-forward"}],
    "phase2": [
        RESOLVENT,
        {"use": "fast-weights", "rule": "delta", "heads": 16},
        {"use": "feed-forward", "multiple": 2.617},  # as many parameters as the Transformer, 0.1 % more
    ],
    "row": [RESOLVENT | {"heads": 8}, {"use": "fast-weights", "rule": "delta", "heads": 4}, {"use": "feed-forward"}],
}
SIZES = {
    "transformer": {"width": 1024, "depth": 10}, "phase2": {"width": 1024, "depth": 7},
    "row": {"width": 256, "depth": 4},  # smaller: what a block keeps for its backward pass is of all tokens
}
ROWS = ("row", "row-wide", "row-kept", "row-recorded", "row-kept-recorded")
ONE = ("transformer", "phase2", "transformer-compiled", "phase2-compiled", "transformer-recorded", "phase2-recorded",
       "transformer-blocks-recorded", "phase2-blocks-recorded", *ROWS)
SEVERAL = ("transformer-ddp", "transformer-fsdp", "transformer-hybrid", "transformer-ddp-recorded", "phase2-ddp",
           "phase2-fsdp", "phase2-ddp-recorded", *ROWS)
SAVED = ("transformer", "transformer-ddp", "transformer-fsdp")
"""Cells in which checkpoints are made and timed."""
PROFILED = 3
"""The last steps, whose speed counts for nothing where they are profiled."""
def recipe(cell: str, processes: int, chosen: argparse.Namespace) -> dict[str, Any]:
    model, *ways = cell.split("-")
    small, rows = chosen.small, 2 if chosen.small else chosen.rows
    steps = chosen.steps if model != "row" else chosen.row_steps
    train: dict[str, Any] = {
        "batch_size": rows * processes, "micro_batch": min(rows, chosen.micro or rows),
        "sequence_length": 128 if small else 2048,
        "compile": "blocks" if "blocks" in ways else "compiled" in ways, "check_compiled": False,
    }
    parallel: dict[str, Any] = {}
    if "fsdp" in ways or "hybrid" in ways:
        parallel = {"data": 2 if "hybrid" in ways else 1, "shard": "auto"}
    if model == "row":
        train = {"batch_size": 1, "sequence_length": 4096 if small else chosen.row,
                 "activation_checkpointing": "kept" not in ways}
        parallel = {"data": 1, "context": "auto"}
    train["cuda_graph"] = "recorded" in ways
    sizes = SIZES[model] | ({"width": 2 * SIZES["row"]["width"]} if "wide" in ways else {})
    return {
        "name": f"{cell}-{processes}",
        "data": {"use": "state-of-the-union", "tokenizer": "bytes",
                 "reset_at_documents": chosen.documents or model == "row"},
        "model": ({"width": 64, "depth": 2} if small else sizes) | {"block": BLOCKS[model]},
        "parallel": parallel,
        "train": train | {"steps": steps, "warmup_steps": 1, "log_every": 1, "optimizer": chosen.optimizer},
        "evaluate": {"every": 10**6, "tokens": 2048, "final_tokens": 2048},
        "checkpoint": {"every": (steps + 1) // 2, "keep": 1, "background": True},
    }


def folder_of(cell: str, processes: int, chosen: argparse.Namespace) -> Path:
    return Path(chosen.out) / f"{cell}-{processes}" / f"{chosen.repeat}"


def measure(chosen: argparse.Namespace) -> None:
    """One process of a start: its cells in turn; rank 0 writes what was measured."""
    import torch

    from muse_core.cli.launch import fresh
    from muse_core.parallel.meeting import meeting
    from muse_core.recipe import check_table
    from muse_core.training import checkpointer, loop, setup
    from muse_core.training.shards import own_part

    setup.Setup.causality_gate = lambda self, warn: "causality gate: left out"
    commit, write, run = checkpointer.Checkpointer.commit, checkpointer.Checkpointer._write, loop.Loop.run
    gradients = loop.Loop._gradients
    stalls: list[float] = []
    writes: list[float] = []
    held: dict[str, float] = {}
    profiles: list[Any] = []
    now = ""

    def timed_commit(self: Any) -> None:
        if now not in SAVED or chosen.unsaved:
            return
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
        held["held"] = sum(one.numel() * one.element_size() for one in parts)
        model = self.state.model
        length, width = self.recipe.train.sequence_length, self.recipe.model.options.width
        attention = sum(type(one).__name__ == "Attention" for one in model.modules())
        # Products with weights, and the lower halves of scores and of their product with values; backward twice as
        # much. Scans and recomputation are left out.
        held["flops"] = 3.0 * (flops_per_token(model) + attention * 2 * length * width)

    def profiled_gradients(self: Any, batch: Any) -> Any:
        left = self.recipe.train.steps - self.state.at.step
        if now in chosen.profile and left == PROFILED:
            profiles.append(torch.profiler.profile())
            profiles[-1].start()
        values = gradients(self, batch)
        if now in chosen.profile and left == 1:
            profiles[-1].stop()
            if self.forward.ranks.rank == 0:
                path = Path(chosen.out) / f"{now}-{self.forward.ranks.size}.profile.txt"
                path.write_text(profiled(profiles.pop()))
        return values

    from muse_core.model.flops import flops_per_token

    checkpointer.Checkpointer.commit, checkpointer.Checkpointer._write = timed_commit, timed_write
    loop.Loop.run, loop.Loop._gradients = watched_run, profiled_gradients
    with meeting() as ranks:
        beside = Beside(ranks.launched.local_rank if ranks.size > 1 else 0, chosen.wait)
        for cell in chosen.cells:
            now = cell
            there = max(ranks.gather(beside.wait()))
            if there > EMPTY and ranks.rank == 0:
                print(f"cell {cell} begins beside {there / 2**30:.1f} GiB of other processes", flush=True)
            # Where a cell stood that is ended now: stacks are read while they change, which can end a process.
            faulthandler.dump_traceback_later(max(5.0, limit_of(cell, chosen) - 3))
            folder = folder_of(cell, ranks.size, chosen)
            if ranks.rank == 0:
                print(f"cell {cell}, {time.monotonic() - BEGAN:.1f} s after the imports", flush=True)
                folder.parent.mkdir(exist_ok=True)
                (Path(chosen.out) / f"{cell}-{ranks.size}-{chosen.repeat}.began").write_text("")
            stalls.clear()
            writes.clear()
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            fresh(check_table(recipe(cell, ranks.size, chosen)), None, folder, allow_drift=False, ranks=ranks)
            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
            parts = ranks.gather({"peak": peak, "stall": stalls[-1] if stalls else None, **held})
            if ranks.rank == 0:
                found = read(folder, PROFILED if cell in chosen.profile else 0) | {
                    "cell": cell, "processes": ranks.size, "flops": held["flops"],
                    "write": writes[-1] if writes else None, "beside": there,
                    "peak": max(one["peak"] for one in parts), "held": max(one["held"] for one in parts),
                    # The first checkpoint is of weights without moments; the second allocates the host's memory.
                    "stall": max(one["stall"] for one in parts) if stalls else None,
                    "device": torch.cuda.get_device_name() if peak else "cpu",
                }
                (folder / "cell.json").write_text(json.dumps(found))
            gc.collect()
            torch.compiler.reset()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            beside.settle()


def limit_of(cell: str, chosen: argparse.Namespace) -> float:
    """Seconds that a cell may take."""
    return chosen.limit * (2 if {"compiled", "blocks"} & set(cell.split("-")) else 1)


def start(processes: int, cells: list[str], gpus: str | None, chosen: argparse.Namespace) -> None:
    """Measure the cells in one start, or in further ones where a cell ended the start before."""
    left = list(cells)
    environment = {"OMP_NUM_THREADS": "4", **os.environ, "MUSE_REPORT": "0"}
    environment |= {} if gpus is None else {"CUDA_VISIBLE_DEVICES": gpus}
    while left and time.monotonic() < chosen.until and not chosen.ended.is_set():
        own = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        emptied(gpus, chosen.wait)
        given = ["--out", str(chosen.out), "--repeat", str(chosen.repeat), "--wait", str(chosen.wait),
                 "--steps", str(chosen.steps), "--rows", str(chosen.rows), "--row",
                 str(chosen.row), "--row-steps", str(chosen.row_steps), "--optimizer", chosen.optimizer, "--limit",
                 str(chosen.limit), *(["--micro", str(chosen.micro)] if chosen.micro else []),
                 *(f"--{name}" for name in ("small", "unsaved", "documents") if getattr(chosen, name)),
                 *(["--profile", *chosen.profile] if chosen.profile else []), "--measure", "--cells", *left]
        command = [*([sys.executable] if processes == 1 else own), __file__, *given]
        log = Path(chosen.out) / f"log-{processes}-{left[0]}-{chosen.repeat}.txt"
        with open(log, "w") as said:
            running = subprocess.Popen(
                command, stdout=said, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
            why = attend(running, processes, left, chosen)
        done = [cell for cell in left if (folder_of(cell, processes, chosen) / "cell.json").exists()]
        left = [cell for cell in left if cell not in done]
        if left:
            print(f"{left[0]} on {processes}: {why or f'exit {running.returncode}'}, see {log.name}", flush=True)
            left = left[1:]


def attend(running: Any, processes: int, cells: list[str], chosen: argparse.Namespace) -> str:
    """Wait for a start; end it where a cell takes too long, and say so."""
    began, before = time.monotonic(), 0
    while running.poll() is None and not chosen.ended.is_set():
        time.sleep(0.2)
        done = sum((folder_of(cell, processes, chosen) / "cell.json").exists() for cell in cells)
        if done > before:
            began, before = time.monotonic(), done
        limit = max((limit_of(cell, chosen) for cell in cells[done : done + 1]), default=chosen.limit)
        late = time.monotonic() - began > limit
        if late or time.monotonic() > chosen.until:
            end(running)
            return f"longer than {limit} s" if late else "no time is left"
    end(running)
    return ""


def side_by_side(cells: list[str], chosen: argparse.Namespace) -> None:
    """Cells of one process, dealt over the GPUs."""
    gpus = devices() or [None]
    threads = [
        threading.Thread(target=start, args=(1, cells[number :: len(gpus)], gpu, chosen))
        for number, gpu in enumerate(gpus)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    asked.add_argument("--cells", nargs="+", default=list(dict.fromkeys((*SEVERAL, *ONE))),
                       choices=sorted({*ONE, *SEVERAL}))
    asked.add_argument("--steps", type=int, default=24)
    asked.add_argument("--rows", type=int, default=16, help="rows of 2,048 tokens a process and step")
    asked.add_argument("--micro", type=int, help="rows of a micro-batch (default: all)")
    asked.add_argument("--documents", action="store_true", help="keep documents apart")
    asked.add_argument("--row", type=int, default=2**20, help="tokens of the one row")
    asked.add_argument("--row-steps", type=int, default=6)
    asked.add_argument("--optimizer", default="adamw")
    asked.add_argument("--limit", type=float, default=300, help="seconds of a cell, twice where it is compiled")
    asked.add_argument("--seconds", type=float, default=1e6, help="of all")
    asked.add_argument("--small", action="store_true")
    asked.add_argument("--unsaved", action="store_true", help="make no checkpoints")
    asked.add_argument("--profile", nargs="*", default=[], choices=sorted({*ONE, *SEVERAL}))
    asked.add_argument("--repeats", type=int, default=1, help="times that all cells are measured")
    asked.add_argument("--wait", type=float, default=60, help="seconds for GPUs that others use to be empty")
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--repeat", type=int, default=0, help=argparse.SUPPRESS)
    asked.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = asked.parse_args()
    if any((options.row_steps if cell in ROWS else options.steps) < PROFILED + 2 for cell in options.profile):
        asked.error(f"--profile takes the last {PROFILED} steps: ask for {PROFILED + 2} or more")
    if options.measure:
        measure(options)
    else:
        options.out = options.out.absolute()
        options.out.mkdir(parents=True, exist_ok=True)
        options.until, options.ended = time.monotonic() + options.seconds, threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: options.ended.set())
        for number in range(options.repeats):
            options.repeat = number
            for count in options.processes:
                here = [cell for cell in options.cells if cell in (ONE if count == 1 else SEVERAL)]
                here = [cell for cell in here if count > 3 or not cell.endswith("hybrid")]
                if count == 1:
                    side_by_side(here, options)
                else:
                    start(count, here, None, options)
        print(table(options.out))
