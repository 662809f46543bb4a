"""``python -m muse_scattering_router.benchmark``: a training step of the experts, forward and backward, against a dense
layer of as many active parameters, with the memory of each."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from muse_core.contracts import Tokens
from muse_core.testing import build_component

HEADS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1024, 2048])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    device = torch.device(given.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bf16, {given.tokens:,} tokens, {given.experts} experts, 2 active")
    print(f"copy bandwidth {bandwidth(device):,.0f} GB/s")
    print("ms: called from Python; graph ms: the same kernels replayed as a CUDA graph, without launching each")
    print("| width | layer | ms | × dense | graph ms | × dense | launches | peak MiB | parameters |")
    print("|---|---|---|---|---|---|---|---|---|")
    for width in given.widths:
        dense = dense_graph = 0.0
        for title, layer in layers(width, given.experts):
            layer = layer.to(device)
            step, signals = step_of(layer, width, given.tokens, device)
            milliseconds, peak = timed(step, given.repeats, device)
            dense = dense or milliseconds
            launched = launches(step, device)
            alone = graphed(step, given.repeats, device)
            dense_graph = dense_graph or alone
            count = sum(parameter.numel() for parameter in layer.parameters())
            print(
                f"| {width} | {title} | {milliseconds:.3f} | {milliseconds / dense:.2f} | "
                f"{alone:.3f} | {alone / dense_graph:.2f} | {launched} | {peak / 2**20:,.0f} | {count:,} |",
                flush=True,
            )
            del layer, step, signals


def layers(width: int, experts: int) -> list[tuple[str, nn.Module]]:
    """The dense layer and experts with two routers; a dense layer of 8/3 is as active as two experts of 4/3."""
    signals = {"phase": (HEADS,), "theta": (HEADS, 2)}
    chosen: dict[str, Any] = {"mlp": "mlp", "scattering": {"use": "scattering", "top_k": 2}}
    return [("feed-forward", build_component("layer", "feed-forward", width=width))] + [
        (
            f"experts, {name}",
            build_component("layer", "experts", experts=experts, router=router, width=width, signals=signals),
        )
        for name, router in chosen.items()
    ]


def step_of(layer: Any, width: int, count: int, device: torch.device) -> tuple[Callable[[], None], dict[str, Tensor]]:
    """A forward and backward pass over rows of 1,024 tokens, and the signals that it reads."""
    rows = max(1, count // 1024)
    length = count // rows
    x = torch.randn(rows, length, width, device=device, requires_grad=True)
    theta = torch.randn(rows, length, HEADS, 2, device=device)
    signals = {"phase": theta.sum(-1), "theta": theta}
    tokens = Tokens(torch.arange(length, device=device).expand(rows, -1))
    target = torch.randn(rows, length, width, device=device, dtype=torch.bfloat16)

    def step() -> None:
        for parameter in layer.parameters():
            parameter.grad = None
        x.grad = None
        with torch.autocast(device.type, dtype=torch.bfloat16):
            found = layer(x, None, signals, tokens)
        sum(found.losses.values(), start=(found.update * target).sum()).backward()

    return step, signals


def timed(step: Callable[[], None], repeats: int, device: torch.device) -> tuple[float, int]:
    """Median milliseconds of a step, and the bytes that it has allocated at most beyond what was there."""
    for _ in range(3):
        step()
    if device.type != "cuda":
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - started))
        return statistics.median(times), 0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    median = events(step, repeats, device)
    return median, torch.cuda.max_memory_allocated(device) - before


def launches(step: Callable[[], None], device: torch.device) -> int:
    """Kernels, copies and fills of a step on the device; 0 without a GPU."""
    if device.type != "cuda":
        return 0
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        step()
        torch.cuda.synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in profiled.events())


def graphed(step: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median milliseconds of the step replayed as a CUDA graph; NaN without a GPU."""
    if device.type != "cuda":
        return float("nan")
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            step()
    except RuntimeError as error:
        print(f"(not captured: {str(error).splitlines()[0]})")
        return float("nan")
    return events(graph.replay, repeats, device)


def events(run: Callable[[], None], repeats: int, device: torch.device) -> float:
    """Median milliseconds on the device of one call after another."""
    times = []
    for _ in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        stop.record()
        torch.cuda.synchronize(device)
        times.append(start.elapsed_time(stop))
    return statistics.median(times)


def bandwidth(device: torch.device) -> float:
    """GB/s read and written by a copy."""
    if device.type != "cuda":
        return float("nan")
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    target.copy_(source)
    start.record()
    for _ in range(10):
        target.copy_(source)
    stop.record()
    torch.cuda.synchronize(device)
    return 20 * source.numel() / start.elapsed_time(stop) / 1e6


if __name__ == "__main__":
    main()
