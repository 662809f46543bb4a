"""The resolvent operations on a GPU: time, bytes counted, share of the copy bandwidth measured in the same run."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..triton.apply_launches import apply_forward, column_tile_for
from ..triton.launches import green_backward, left_green_backward, left_green_forward
from ..triton.left_green import LONGEST
from ..triton.rows import Rows, tile_for
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
    """The launches of the table; `tiles` overrides the choice by case name."""
    tiles = tiles or {}

    def tile(name: str, sites: int):
        return tiles.get(name) or tile_for(sites, 16, LONGEST)

    name, rows, sites = "G forward 4096x2048, saving theta", 4096, 2048
    operands, t = draw(rows, sites, constant=False, copies=3), tile("G forward 4096x2048, saving theta", sites)
    yield Case(name, [lambda o=o: left_green_forward(o, t, full=True) for o in operands], 40 * rows * sites, 0.65)

    name = "G backward 4096x2048"
    saved = [left_green_forward(o, tile_for(sites, 16, LONGEST), full=True) for o in operands]
    gradients = [torch.randn_like(s[1]) for s in saved]
    t = tile(name, sites)
    yield Case(
        name,
        [lambda o=o, s=s, g=g: green_backward(o, *s, g, True, t) for o, s, g in zip(operands, saved, gradients)],
        64 * rows * sites,
        0.65,
    )
    for name, rows, sites in (("theta {} 512x4096, constant hopping", 512, 4096), ("theta {} 64x262144", 64, 262_144)):
        operands = draw(rows, sites, constant=True, copies=6 if rows == 512 else 3)
        t = tile(name.format("forward"), sites)
        yield Case(
            name.format("forward"),
            [lambda o=o: left_green_forward(o, t, full=False) for o in operands],
            16 * rows * sites,
            0.5,
        )
        saved = [left_green_forward(o, tile_for(sites, 16, LONGEST), full=False)[0] for o in operands]
        gradients = [torch.randn_like(s) for s in saved]
        t = tile(name.format("backward"), sites)
        yield Case(
            name.format("backward"),
            [
                lambda o=o, s=s, g=g: left_green_backward(o, s, g, None, None, False, t)
                for o, s, g in zip(operands, saved, gradients)
            ],
            24 * rows * sites,
            0.5,
        )
    rows, sites, width = 2048, 1024, 6
    operands = draw(rows, sites, constant=True, copies=3)
    values = [torch.randn(1, rows, sites, width, dtype=torch.complex64, device="cuda") for _ in operands]
    carried = torch.zeros(rows, width, dtype=torch.complex64, device="cuda")
    name = "causal apply 2048x1024, M = 6, complex"
    t = tile("apply theta", sites)
    columns = tiles.get(name) or column_tile_for(sites, width)

    def apply(o: Rows, x: Tensor):
        theta, _ = left_green_forward(o, t, full=False)
        return apply_forward(x, o.lower, theta, carried, columns), theta

    moved = (8 + 8 + 16 * width) * rows * sites
    yield Case(name, [lambda o=o, x=x: apply(o, x) for o, x in zip(operands, values)], moved, 0.65)


def measure(tiles: dict | None = None) -> Iterator[Row]:
    """Rows of the table as they are measured."""
    for case in cases(tiles):
        yield Row(case.name, device_seconds(case.calls), case.bytes, case.target)
