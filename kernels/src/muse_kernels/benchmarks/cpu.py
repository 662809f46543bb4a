"""The torch backend in one thread, against the sequential loop and over lengths."""

import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..torch import causal_resolvent_diagonal, resolvent_diagonal

ENERGY = 0.5 + 0.1j


def loop(diagonal: Tensor) -> Tensor:
    """theta of unit couplings, site by site."""
    theta, steps = torch.zeros_like(diagonal[:, 0], dtype=torch.complex64), []
    for d in (diagonal - ENERGY).unbind(1):
        theta = 1 / (d - theta)
        steps.append(theta)
    return torch.stack(steps, 1)


def theta(diagonal: Tensor) -> Tensor:
    """theta in lanes."""
    return causal_resolvent_diagonal(diagonal, 1.0, 1.0, ENERGY)[0]


def green(diagonal: Tensor) -> Tensor:
    """G in lanes."""
    return resolvent_diagonal(diagonal, 1.0, 1.0, ENERGY)


def seconds(function: Callable[[Tensor], Tensor], rows: int, sites: int, repeats: int) -> tuple[float, float]:
    """Least seconds of forward and of backward."""
    forward, backward = [], []
    for _ in range(repeats):
        diagonal = torch.randn(rows, sites, requires_grad=True)
        start = time.perf_counter()
        output = function(diagonal)
        middle = time.perf_counter()
        torch.view_as_real(output).sum().backward()
        forward.append(middle - start)
        backward.append(time.perf_counter() - middle)
    return min(forward), min(backward)


def measure() -> dict[str, list[dict]]:
    """Print both comparisons, in one thread, and return their figures."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"at 64x4096": list(_against_the_loop()), "over lengths": list(_over_lengths())}
    finally:
        torch.set_num_threads(threads)


def _against_the_loop() -> Iterator[dict]:
    for function in (theta, green, loop):
        times = seconds(function, 64, 4096, 1 if function is loop else 3)
        print(f"{function.__name__:6} 64x4096   forward {times[0] * 1e3:8.1f} ms  backward {times[1] * 1e3:8.1f} ms")
        yield {"name": function.__name__, "forward_seconds": times[0], "backward_seconds": times[1]}


def _over_lengths(rows: int = 4, lengths: tuple[int, ...] = (16_384, 65_536, 262_144)) -> Iterator[dict]:
    for function in (theta, green):
        measured = [seconds(function, rows, sites, 5) for sites in lengths]
        for direction, times in zip(("forward", "backward"), zip(*measured)):
            exponent = math.log(times[-1] / times[0]) / math.log(lengths[-1] / lengths[0])
            row = "  ".join(f"{t * 1e3:8.1f}" for t in times)
            print(f"{function.__name__:6} {rows} x {lengths} {direction:8} {row} ms, exponent {exponent:.2f}")
            yield {"name": f"{function.__name__} {direction}", "seconds": times, "exponent": exponent}
