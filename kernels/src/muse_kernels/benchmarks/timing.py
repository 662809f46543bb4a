"""Device times by graph replay: many launches over rotating buffers, so that neither host nor cache is measured."""

import statistics
from collections.abc import Callable, Sequence

import torch


def device_seconds(calls: Sequence[Callable[[], object]], rounds: int = 4, repeats: int = 15) -> float:
    """Median seconds of one call on the device; each call works on buffers of its own."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph):
        for _ in range(rounds):
            kept = [call() for call in calls]
    graph.replay()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start, stop in marks:
        start.record()
        graph.replay()
        stop.record()
    torch.cuda.synchronize()
    del kept
    return statistics.median(a.elapsed_time(b) for a, b in marks) * 1e-3 / (rounds * len(calls))


def copy_bandwidth(megabytes: int = 1024, repeats: int = 20) -> float:
    """Bytes read and written a second by a device copy of this size; outside a graph, whose copies are slower."""
    source, target = (torch.empty(megabytes << 18, dtype=torch.float32, device="cuda") for _ in range(2))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    target.copy_(source)
    for mark in marks:
        mark.record()
        target.copy_(source)
    torch.cuda.synchronize()
    return 2 * source.nbytes / (statistics.median(a.elapsed_time(b) for a, b in zip(marks, marks[1:])) * 1e-3)
