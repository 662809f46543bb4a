"""What a training step launches on a GPU, and how device and host share its time.

    python tests/benchmarks/step_launches.py recipes/experiments/phase2_512x6.toml --length 2048 --tokens 65536 \
        [--compile | --blocks] [--recorded] [--kernels 30]

``kernels`` are kernels, copies and fills of one step of ``muse cost``, counted by torch's profiler, ``launches`` what
the processor calls to start them: as many, or one for all that a CUDA graph holds. ``device`` is the time in which at
least one kernel ran, ``wall`` the median of steps without the profiler. What ``wall`` is above ``device`` the GPU waits
for the processor. ``host`` is the median of the time that the processor takes to start a step's work: what it does
before it waits for the step's numbers, and after. With ``--recorded`` the same model is measured again with the forward
and backward pass as one CUDA graph (``train.cuda_graph``).
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

STARTS = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync", "cudaGraphLaunch")


def measured(step: Callable[[], None], repeats: int) -> dict[str, Any]:
    """Kernels, launches, milliseconds of device and wall, and (count, milliseconds, name) of every kernel of a step."""
    times, hosts = [], []
    torch.cuda.reset_peak_memory_stats()
    with waits() as marks:
        for _ in range(repeats):
            torch.cuda.synchronize()
            marks.clear()
            began = time.perf_counter()
            step()
            ended = time.perf_counter()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
            hosts.append(ended - began - sum(later - earlier for earlier, later in marks))
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
        "host": 1e3 * statistics.median(hosts),
        "peak": torch.cuda.max_memory_allocated(),
        "kernels": sorted(((counts[name], spent[name], name) for name in counts), key=lambda row: -row[1]),
        "callers": callers.most_common(),
    }


@contextlib.contextmanager
def waits() -> Iterator[list[tuple[float, float]]]:
    """When steps of ``muse cost`` begin and end to wait for the numbers that they read from the device."""
    from muse_core.metrics.accumulator import Packed

    numbers, marks = Packed.numbers, []

    def timed(packed: Packed) -> Any:
        began = time.perf_counter()
        found = numbers(packed)
        marks.append((began, time.perf_counter()))
        return found

    Packed.numbers = timed
    try:
        yield marks
    finally:
        Packed.numbers = numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--length", dest="lengths", type=int, action="append", help="may be repeated [default: 2048]")
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--blocks", action="store_true", help="compile each block of the stack by itself")
    parser.add_argument("--recorded", action="store_true", help="measure the step as a CUDA graph, too")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kernels", type=int, default=0, help="so many rows of the kernels that take longest")
    parser.add_argument("--inductor", action="append", default=[], metavar="KEY",
                        help="a switch of torch._inductor.config that is on")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    import torch._inductor.config

    from muse_core.comparison.cost import training_step
    from muse_core.comparison.targets import open_target
    from muse_core.training import cuda_graph

    for key in given.inductor:
        setattr(torch._inductor.config, key, True)
    settings = [
        *given.set, *(["train.compile=true"] if given.compile else []),
        *(['train.compile="blocks"'] if given.blocks else []),
    ]
    recorded_from = cuda_graph.PLAIN
    for length in given.lengths or [2048]:
        rows = given.tokens // length
        for path in given.recipes:
            told = [*settings, *(["train.cuda_graph=true"] if given.recorded else [])]
            target = open_target(path, told, 257, print)
            step, _ = training_step(target.model, target.recipe, target.precision, rows=rows, length=length)
            for recorded in (False, True) if given.recorded else (None,):
                if recorded is not None:
                    cuda_graph.PLAIN = recorded_from if recorded else sys.maxsize
                began = time.perf_counter()
                for _ in range(4):
                    step()
                torch.cuda.synchronize()
                start = time.perf_counter() - began
                found = measured(step, given.repeats)
                named = f"{path.stem} {rows} x {length} {' '.join(settings)}"
                show(named + " recorded" * bool(recorded), found, given.tokens, start, given.kernels)
            del step, target
            torch.cuda.empty_cache()


def show(name: str, found: dict[str, Any], tokens: int, start: float, most: int) -> None:
    """One line of a measured step, and its ``most`` longest kernels."""
    print(
        f"{name}: {found['count']} kernels, {found['launches']} launches, device {found['device']:.2f} ms, wall "
        f"{found['wall']:.2f} ms, host {found['host']:.2f} ms, {tokens / found['wall'] * 1e3:,.0f} tokens/s, peak "
        f"{found['peak'] / 1e9:.2f} GB, first four steps {start:.1f} s",
        flush=True,
    )
    for count, spent, kernel in found["kernels"][:most]:
        print(f"  {count:5} {spent:8.3f} ms  {kernel[:150]}")
    if most:
        print("  by operation:", *(f"{name} {count}" for name, count in found["callers"][:most]))


if __name__ == "__main__":
    main()
