"""The resolvent operations on a GPU: time, bytes counted, share of the copy bandwidth measured in the same run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton.resolvent.apply_launches import apply_backward, apply_forward
from ..triton.resolvent.green_launches import green_backward, left_green_backward, left_green_forward
from ..triton.resolvent.row_launches import left_green
from ..triton.resolvent.rows import Rows
from ..triton.resolvent.tiles import green_tile
from .timing import device_seconds


class Row(NamedTuple):
    """One measurement; `bytes` counts every input read once and every output written once."""

    name: str
    seconds: float
    bytes: int
    target: float | None = None
    """Share of the copy bandwidth to reach."""


class Case(NamedTuple):
    """One launch to be timed: a call for each of several buffer sets, and the bytes that one moves."""

    name: str
    calls: list[Callable[[], object]]
    bytes: int
    target: float | None


def draw(rows: int, sites: int, constant: bool, copies: int) -> list[Rows]:
    """Physical operands: V - i Gamma, |l| about one, u = conj(l), energies over the band with eta = 0.1."""
    random = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, device="cuda", dtype=torch.complex64)

    drawn = []
    for _ in range(copies):
        a = normal(1, rows, sites)
        a = torch.complex(a.real, -a.imag.abs())
        l = torch.polar(torch.ones(()).cuda(), 6.28 * torch.rand(rows, generator=random, device="cuda"))
        if not constant:
            l = torch.exp(0.3 * normal(1, rows, sites))
        z = torch.complex(4 * torch.rand(rows, generator=random, device="cuda") - 2, torch.full((rows,), 0.1).cuda())
        drawn.append(Rows(a, l, l.conj().resolve_conj(), z, torch.zeros_like(z)))
    return drawn


def cases(tiles: dict | None = None) -> Iterator[Case]:
    """The launches of the table; `tiles` overrides the choice of lanes and warps by case name."""
    tiles = tiles or {}
    yield from green_cases(4096, 2048, tiles)
    yield from left_cases("512x4096, constant hopping", 512, 4096, 6, tiles)
    yield from left_cases("64x262144, constant hopping", 64, 262_144, 3, tiles)
    yield from apply_cases(2048, 1024, 6, tiles)


def green_cases(rows: int, sites: int, tiles: dict) -> Iterator[Case]:
    """G of complex diagonal and couplings."""
    operands = draw(rows, sites, constant=False, copies=3)
    forward, backward = f"G forward {rows}x{sites}, saving theta", f"G backward {rows}x{sites}"
    tile = tiles.get(forward) or green_tile(sites)
    saved = [left_green_forward(o, tile, full=True) for o in operands]
    yield Case(
        forward, [partial(left_green_forward, o, tile, full=True) for o in operands], 40 * rows * sites, target=0.65
    )
    tile = tiles.get(backward) or green_tile(sites)
    calls = [partial(green_backward, o, *s, torch.randn_like(s[1]), True, tile) for o, s in zip(operands, saved)]
    yield Case(backward, calls, 64 * rows * sites, target=0.65)


def left_cases(label: str, rows: int, sites: int, copies: int, tiles: dict) -> Iterator[Case]:
    """theta of a complex diagonal with one coupling a row, which takes no gradient."""
    operands = draw(rows, sites, constant=True, copies=copies)
    forward, backward = f"theta forward {label}", f"theta backward {label}"
    calls = [partial(left_green, o, tiles.get(forward)) for o in operands]
    yield Case(forward, calls, 16 * rows * sites, target=0.5)
    saved = [call() for call in calls]
    tile = tiles.get(backward)
    calls = [
        partial(left_green_backward, o, s, torch.randn_like(s), None, None, False, tile)
        for o, s in zip(operands, saved)
    ]
    yield Case(backward, calls, 24 * rows * sites, target=0.5)


def apply_cases(rows: int, sites: int, width: int, tiles: dict) -> Iterator[Case]:
    """theta and y of complex values, with one coupling a row, which takes no gradient."""
    label = f"{rows}x{sites}, M = {width}, complex"
    forward, backward = f"causal apply {label}", f"causal apply backward {label}"
    operands = draw(rows, sites, constant=True, copies=3)
    values = [torch.randn(1, rows, sites, width, dtype=torch.complex64, device="cuda") for _ in operands]
    carried = torch.zeros(rows, width, dtype=torch.complex64, device="cuda")
    calls = [partial(apply_forward, o, x, carried, lanes=tiles.get(forward)) for o, x in zip(operands, values)]
    yield Case(forward, calls, (16 + 16 * width) * rows * sites, target=0.65)
    saved = [call() for call in calls]

    def differentiate(o: Rows, y: Tensor, theta: Tensor, of_y: Tensor, of_theta: Tensor) -> tuple[Tensor, ...]:
        dx, applied, *_ = apply_backward(
            of_y, y, o.lower, theta, carried, y.dtype, False, lanes=tiles.get(backward)
        )
        return dx, *left_green_backward(o, theta, of_theta, applied, None, False)

    calls = [partial(differentiate, o, *s, *(torch.randn_like(x) for x in s)) for o, s in zip(operands, saved)]
    yield Case(backward, calls, (24 + 24 * width) * rows * sites, target=None)


def measure(tiles: dict | None = None) -> Iterator[Row]:
    """Rows of the table as they are measured."""
    for case in cases(tiles):
        yield Row(case.name, device_seconds(case.calls), case.bytes, case.target)


def against_the_loop(rows: int = 64, sites: int = 4096) -> tuple[float, float]:
    """Seconds on the device of the continued fraction as a Python loop under torch.vmap, and of one launch."""
    (operands,) = draw(rows, sites, constant=True, copies=1)
    d = operands.diagonal[0] - operands.energy[:, None]
    p = (operands.lower * operands.upper)[:, None].expand_as(d)

    def row(d: Tensor, p: Tensor) -> Tensor:
        theta, steps = torch.zeros_like(d[0]), []
        for i in range(sites):
            theta = 1 / (d[i] - p[i] * theta)
            steps.append(theta)
        return torch.stack(steps)

    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    loop = torch.vmap(row)
    start.record()
    loop(d, p)
    stop.record()
    torch.cuda.synchronize()
    ours = device_seconds([partial(left_green, operands)])
    return start.elapsed_time(stop) * 1e-3, ours
