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


def copy_bandwidth(megabytes: int = 1024) -> float:
    """Bytes read and written a second by a device copy of this size."""
    pairs = [[torch.empty(megabytes << 20, dtype=torch.int8, device="cuda") for _ in range(2)] for _ in range(2)]
    return 2 * pairs[0][0].nbytes / device_seconds([lambda a=a, b=b: b.copy_(a) for a, b in pairs])
