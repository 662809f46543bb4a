"""What the resolvent kernels become on Hopper: ceilings on registers, spills and instructions a site."""

import os

import pytest
import torch

launches = pytest.importorskip("muse_kernels.triton.resolvent.green_launches")
row_launches = pytest.importorskip("muse_kernels.triton.resolvent.row_launches")
column_launches = pytest.importorskip("muse_kernels.triton.resolvent.column_apply_launches")
lane_launches = pytest.importorskip("muse_kernels.triton.resolvent.lane_apply_launches")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")
tiles = pytest.importorskip("muse_kernels.triton.resolvent.tiles")

from muse_kernels.triton.resolvent.rows import Rows  # noqa: E402

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
    if not sm90.COUNTS_HOLD:
        return
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


def test_theta_backward_of_long_rows(monkeypatch):
    rows, theta = operands(64, 262_144, constant=True), torch.empty(64, 262_144, dtype=torch.complex64, device="meta")
    launch = lambda: launches.left_green_backward(rows, theta, theta, None, None, False)  # noqa: E731
    found = compiled(monkeypatch, launches, "left_green_backward_kernel", launch)
    check(found, tiles.CHAIN_BACKWARD.per_lane, registers=64, instructions=140)


def values(rows: int, sites: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Values of rows and what they start from."""
    return (
        torch.empty(1, rows, sites, width, dtype=torch.complex64, device="meta"),
        torch.empty(rows, width, dtype=torch.complex64, device="meta"),
    )


def test_values_in_columns(monkeypatch):
    # 8 sites ahead: 16, as the choice is, take longer to compile.
    tile = tiles.column_tile(2048, 1024, 16)._replace(stretch=8)
    theta, (x, initial) = torch.empty(2048, 1024, dtype=torch.complex64, device="meta"), values(2048, 1024, 16)
    launch = lambda: column_launches.run_columns(x, operands(2048, 1024, True).lower, theta, initial, tile)  # noqa: E731
    found = compiled(monkeypatch, column_launches, "apply_kernel", launch)
    check(found, tile.stretch, registers=64, instructions=70)


def test_values_in_lanes(monkeypatch):
    tile, (x, initial) = tiles.lane_tile(2048, 1024, 6), values(2048, 1024, 6)
    launch = lambda: lane_launches.run_lanes(operands(2048, 1024, True), x, initial, tile)  # noqa: E731
    found = compiled(monkeypatch, lane_launches, "lane_apply_kernel", launch)
    check(found, tile.per_lane, registers=128, instructions=385)


def test_values_in_lanes_backward(monkeypatch):
    tile, (y, initial) = tiles.lane_backward_tile(2048, 1024, 6), values(2048, 1024, 6)
    theta = torch.empty(2048, 1024, dtype=torch.complex64, device="meta")
    lower = operands(2048, 1024, True).lower
    launch = lambda: lane_launches.run_lanes_back(y, y, lower, theta, initial, y.dtype, True, tile)  # noqa: E731
    found = compiled(monkeypatch, lane_launches, "lane_apply_backward_kernel", launch)
    check(found, tile.per_lane, registers=128, instructions=560)


def test_narrow_heads_inside_tokens_move_in_vectors(monkeypatch):
    """Strides of 8 numbers: the compiler knows of multiples of 16 alone, and stored bfloat16 one by one."""
    heads, width = 64, 8
    y, gradient = (torch.empty(2, 256, heads, width, dtype=torch.complex64, device="meta") for _ in range(2))
    y, gradient = y.transpose(1, 2), gradient.transpose(1, 2)
    lower = torch.empty(2 * heads, dtype=torch.complex64, device="meta")
    theta = torch.empty(2 * heads, 256, dtype=torch.complex64, device="meta")
    initial = torch.empty(2 * heads, width, dtype=torch.complex64, device="meta")
    recorder = sm90.Recorder(lane_launches.lane_apply_backward_kernel)
    monkeypatch.setattr(lane_launches, "lane_apply_backward_kernel", recorder)
    tile = tiles.lane_backward_tile(2048, 256, width)
    lane_launches.run_lanes_back(gradient, y, lower, theta, initial, torch.bfloat16, True, tile)
    ptx = recorder.compiled().asm["ptx"]
    assert "st.global.v4" in ptx and "st.global.b16" not in ptx and "ld.global.v2" not in ptx
