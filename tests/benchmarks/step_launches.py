"""What a training step launches on a GPU, and how device and host share its time.

    python tests/benchmarks/step_launches.py recipes/experiments/phase2_512x6.toml --length 2048 --tokens 65536 \
        [--compile | --blocks] [--kernels 30]

``kernels`` are kernels, copies and fills of one step of ``muse cost``, counted by torch's profiler, ``launches`` what
the processor calls to start them: as many, or one for all that a CUDA graph holds. ``device`` is the time in which at
least one kernel ran, ``wall`` the median of steps without the profiler. What ``wall`` is above ``device`` the GPU waits
for the processor.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STARTS = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")


def measured(step: Callable[[], None], repeats: int) -> dict[str, Any]:
    """Kernels, launches, milliseconds of device and wall, and (count, milliseconds, name) of every kernel of a step."""
    times = []
    torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    spent: dict[str, float] = defaultdict(float)
    stretches, callers, launches = [], Counter(), 0
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation:
            counts[event.name] += 1
            spent[event.name] += event.time_range.elapsed_us() / 1e3
            stretches.append((event.time_range.start, event.time_range.end))
        elif event.name.startswith(STARTS):
            launches += 1
        elif event.kernels:
            callers[event.name] += len(event.kernels)
    busy, until = 0.0, 0.0
    for start, end in sorted(stretches):
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return {
        "launches": launches,
        "count": sum(counts.values()),
        "device": busy / 1e3,
        "wall": 1e3 * statistics.median(times),
        "peak": torch.cuda.max_memory_allocated(),
        "kernels": sorted(((counts[name], spent[name], name) for name in counts), key=lambda row: -row[1]),
        "callers": callers.most_common(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--length", dest="lengths", type=int, action="append", help="may be repeated [default: 2048]")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--blocks", action="store_true", help="compile each block of the stack by itself")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kernels", type=int, default=0, help="so many rows of the kernels that take longest")
    parser.add_argument("--inductor", action="append", default=[], metavar="KEY",
                        help="a switch of torch._inductor.config that is on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    import torch._inductor.config

    from muse_core.comparison.cost import training_step
    from muse_core.comparison.targets import open_target

    for key in given.inductor:
        setattr(torch._inductor.config, key, True)
    settings = [*given.set, *(["train.compile=true"] if given.compile else [])]
    for length in given.lengths or [2048]:
        rows = given.tokens // length
        for path in given.recipes:
            target = open_target(path, settings, 257, print)
            step, _ = training_step(target.model, target.recipe, target.precision, rows=rows, length=length)
            for block in target.model.blocks if given.blocks else ():
                block.compile()
            began = time.perf_counter()
            for _ in range(4):
                step()
            torch.cuda.synchronize()
            start = time.perf_counter() - began
            found = measured(step, given.repeats)
            print(
                f"{path.stem} {rows} x {length} {' '.join(settings)}{' blocks' * given.blocks}: {found['count']} "
                f"kernels, {found['launches']} launches, device {found['device']:.2f} ms, wall {found['wall']:.2f} ms, "
                f"{given.tokens / found['wall'] * 1e3:,.0f} tokens/s, peak {found['peak'] / 1e9:.2f} GB, "
                f"first four steps {start:.1f} s",
                flush=True,
            )
            for count, spent, name in found["kernels"][: given.kernels]:
                print(f"  {count:5} {spent:8.3f} ms  {name[:150]}")
            if given.kernels:
                print("  by operation:", *(f"{name} {count}" for name, count in found["callers"][: given.kernels]))
            del step, target
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
