"""What the resolvent kernels become on Hopper: ceilings on registers, spills and instructions a site."""

import os

import pytest
import torch

launches = pytest.importorskip("muse_kernels.triton.launches")
row_launches = pytest.importorskip("muse_kernels.triton.row_launches")
apply_launches = pytest.importorskip("muse_kernels.triton.apply_launches")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")
tiles = pytest.importorskip("muse_kernels.triton.tiles")

from muse_kernels.triton.rows import Rows  # noqa: E402

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")


def operands(rows: int, sites: int, constant: bool = False) -> Rows:
    """Complex operands that hold no memory."""
    a, l, u = (torch.empty(1, rows, sites, dtype=torch.complex64, device="meta") for _ in range(3))
    z, theta = (torch.empty(rows, dtype=torch.complex64, device="meta") for _ in range(2))
    return Rows(a, z, z, z, theta) if constant else Rows(a, l, u, z, theta)


def compiled(monkeypatch, module, name: str, launch) -> "sm90.Resources":
    """The kernel `name` of the module as `launch` would run it."""
    recorder = sm90.Recorder(getattr(module, name))
    monkeypatch.setattr(module, name, recorder)
    launch()
    return recorder.compile()


def check(found, sites_a_thread: int, registers: int, instructions: float, stack: int = 0) -> None:
    assert found.stack <= stack, f"spills: {found}"
    assert found.registers <= registers, found
    assert found.instructions / sites_a_thread <= instructions, found


def test_green_forward(monkeypatch):
    tile = tiles.green_tile(2048)
    rows = operands(4, 2048)
    found = compiled(
        monkeypatch, launches, "left_green_kernel", lambda: launches.left_green_forward(rows, tile, full=True)
    )
    check(found, tile.per_lane, registers=128, instructions=235)


def test_green_backward(monkeypatch):
    tile = tiles.green_tile(2048)
    rows = operands(4, 2048)
    saved = [torch.empty(4, 2048, dtype=torch.complex64, device="meta") for _ in range(3)]
    found = compiled(
        monkeypatch, launches, "green_backward_kernel", lambda: launches.green_backward(rows, *saved, True, tile)
    )
    check(found, tile.per_lane, registers=230, instructions=215)


def test_theta_of_many_rows(monkeypatch):
    rows = operands(512, 4096, constant=True)
    launch = lambda: row_launches.left_green_loop(rows, tiles.LOOP)  # noqa: E731
    found = compiled(monkeypatch, row_launches, "left_green_loop_kernel", launch)
    check(found, tiles.LOOP.per_lane, registers=100, instructions=150)


def test_theta_of_long_rows(monkeypatch):
    rows = operands(64, 262_144, constant=True)
    launch = lambda: row_launches.left_green_chain(rows, tiles.CHAIN)  # noqa: E731
    found = compiled(monkeypatch, row_launches, "left_green_chain_kernel", launch)
    check(found, tiles.CHAIN.per_lane, registers=80, instructions=120, stack=32)


def test_theta_backward(monkeypatch):
    rows, tile = operands(512, 4096, constant=True), tiles.left_backward_tile(4096)
    theta = torch.empty(512, 4096, dtype=torch.complex64, device="meta")
    launch = lambda: launches.left_green_backward(rows, theta, theta, None, None, False, tile)  # noqa: E731
    found = compiled(monkeypatch, launches, "left_green_backward_kernel", launch)
    check(found, tile.per_lane, registers=64, instructions=115)


def test_values_forward(monkeypatch):
    # 32 sites ahead, as the choice is, take ten times as long to compile, and the same instructions a site.
    tile = tiles.column_tile(2048, 1024, 6)._replace(stretch=8)
    values = torch.empty(1, 2048, 1024, 6, dtype=torch.complex64, device="meta")
    rows = operands(2048, 1024, constant=True)
    theta = torch.empty(2048, 1024, dtype=torch.complex64, device="meta")
    initial = torch.empty(2048, 6, dtype=torch.complex64, device="meta")
    found = compiled(
        monkeypatch,
        apply_launches,
        "apply_kernel",
        lambda: apply_launches.apply_forward(values, rows.lower, theta, initial, tile),
    )
    check(found, tile.stretch, registers=64, instructions=60)
