"""Recorded steps with fewer kernels around products of integers: on a GPU, or with TRITON_INTERPRET=1 on the CPU."""

from __future__ import annotations

import collections
import operator

import pytest
import torch
from muse_koopman.maps import CompressedLinear
from muse_koopman.recorded import simplified
from muse_koopman.storage import Int8
from torch import Tensor, nn
from torch.nn import functional as F

from muse_core.model.recording import record
from muse_kernels.refusals import refuse_triton
from muse_kernels.request import KernelRequest

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFUSED = refuse_triton(KernelRequest("int8_product", DEVICE, "float32", {}))
pytestmark = pytest.mark.skipif(REFUSED is not None, reason=str(REFUSED))
WIDTH, HIDDEN, HEADS = 16, 24, 2
EPS = 1e-6
TOLERANCE = 4e-3


def product(x: Tensor, form: Int8) -> Tensor:
    from muse_kernels.triton.int8_product import int8_product

    return int8_product(x, form.values, form.scale)


class Layers(nn.Module):
    """A mixer whose maps are laid side by side, cut and viewed, a gated feed-forward layer, and an output whose parts
    others read too."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)

        def form(rows: int, columns: int) -> Int8:
            return Int8(torch.randn(rows, columns, generator=random) / columns**0.5)

        self.query, self.key, self.value, self.gate, self.out = (form(WIDTH, WIDTH) for _ in range(5))
        self.up, self.down, self.head = form(2 * HIDDEN, WIDTH), form(WIDTH, HIDDEN), form(7, WIDTH)
        self.register_buffer("weight", torch.rand(WIDTH, generator=random) + 0.5)

    def normed(self, x: Tensor) -> Tensor:
        return torch.ops.aten._fused_rms_norm.default(x, [WIDTH], self.weight, EPS)[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.normed(x)
        low = norm.half()
        query = product(low, self.query)
        three = torch.cat([product(low, one) for one in (self.key, self.value, self.gate)], dim=-1)
        key, value, gate = three.split(WIDTH, dim=-1)
        heads = query.view(1, 1, HEADS, -1).transpose(1, 2)
        mixed = (gate * key + value + three[..., WIDTH:-WIDTH]).unflatten(-1, (HEADS, -1)).transpose(1, 2) * heads
        x = x + product(mixed.transpose(1, 2).flatten(2) + norm.mean().half(), self.out)
        hidden, gate = product(self.normed(x).half(), self.up).chunk(2, dim=-1)
        x = x + product(F.silu(gate) * hidden, self.down)
        last = self.normed(x).half()
        return product(last, self.head) + last[..., :7], x


@pytest.fixture(scope="module")
def layers() -> Layers:
    return Layers().to(DEVICE)


def row(seed: int = 1) -> Tensor:
    return torch.randn(1, 1, WIDTH, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def calls(graph: torch.fx.GraphModule) -> collections.Counter[str]:
    return collections.Counter(str(node.target) for node in graph.graph.nodes if node.op == "call_function")


def test_a_step_says_the_same_with_fewer_kernels(layers: Layers) -> None:
    graph = record(layers, [row()])
    before = calls(graph)
    due = graph(row(2))
    after = calls(simplified(graph, [row()]))
    for one, other in zip(graph(row(2)), due):
        assert one.dtype == other.dtype
        assert (one - other).float().norm() < TOLERANCE * other.float().norm()
    assert before["muse_kernels.int8_product.default"] == 8
    # The four of the first norm are one, whose norm another reads too, as the last conversion.
    assert after["muse_kernels.int8_product.default"] == 0
    assert after["muse_kernels.int8_product_between.default"] == 5
    assert before["aten._to_copy.default"] - after["aten._to_copy.default"] == 2
    if DEVICE == "cuda":
        assert before["aten._fused_rms_norm.default"] == 3 and after["aten._fused_rms_norm.default"] == 2
    assert after["aten.cat.default"] == after["aten.silu.default"] == 0
    assert before["aten.add.Tensor"] - after["aten.add.Tensor"] == 3


def test_sums_that_a_kernel_would_round_otherwise_stay(layers: Layers) -> None:
    """A stream of other shape or of another dtype than the sum, and a product that two read."""

    def step(x: Tensor) -> list[Tensor]:
        low = x.half()
        wide, other = product(low, layers.query), product(low.sigmoid(), layers.key)
        short, twice = product(low.tanh(), layers.value), product(low.cos(), layers.gate)
        sums = [wide + x.new_ones(3, 1, WIDTH), other + x, short + low[..., :1], torch.add(x, twice, alpha=2)]
        return [*sums, other * 2]

    graph = record(step, [row()])
    due = graph(row(2))
    found = simplified(graph, [row()])
    for one, other in zip(found(row(2)), due):
        assert torch.equal(one, other)
    assert calls(found)["aten.add.Tensor"] == 4


@pytest.mark.parametrize(("columns", "others"), [(WIDTH, 0), (WIDTH, 1), (WIDTH // 2, 0)])
def test_the_norm_before_a_product(layers: Layers, columns: int, others: int) -> None:
    """In the kernel where it is over all that is multiplied and nobody else reads it. Written out, since a CPU records
    the parts of a norm."""
    product(row().half(), layers.query)  # the call defines the operation
    graph, aten = torch.fx.Graph(), torch.ops.aten
    x = graph.placeholder("x")
    held = {"weight": layers.weight[:columns], "values": layers.query.values, "scale": layers.query.scale}
    weight, values, scale = map(graph.get_attr, held)
    wide = x if columns == WIDTH else graph.call_function(aten.view.default, (x, [1, 2, columns]))
    norm = graph.call_function(aten._fused_rms_norm.default, (wide, [columns], weight, EPS))
    normed = graph.call_function(operator.getitem, (norm, 0))
    low = graph.call_function(aten._to_copy.default, (normed,), {"dtype": torch.float16})
    low = low if columns == WIDTH else graph.call_function(aten.view.default, (low, [1, 1, WIDTH]))
    found = graph.call_function(torch.ops.muse_kernels.int8_product.default, (low, values, scale))
    graph.output((found, *[normed] * others))
    holder = nn.Module()
    for name, tensor in held.items():
        holder.register_buffer(name, tensor)
    step = torch.fx.GraphModule(holder, graph)
    due = step(row(2))[0].float()
    after = simplified(step, [row()])
    assert calls(after)["aten._fused_rms_norm.default"] == (columns < WIDTH or others > 0)
    assert (after(row(2))[0] - due).norm() < TOLERANCE * due.norm()


def test_a_step_without_integers_stays(layers: Layers) -> None:
    graph = record(lambda x: [x.sin()], [row()])
    assert simplified(graph, [row()]) is graph


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_compressed_map_on_a_gpu_reaches_the_kernel(layers: Layers) -> None:
    form = CompressedLinear(layers.query, None, None).eval()

    def step(x: Tensor) -> list[Tensor]:
        with torch.autocast("cuda", dtype=torch.float16):
            return [x + form(x.half())]

    graph = record(step, [row()])
    due = graph(row(2))[0]
    found = simplified(graph, [row()])
    assert calls(found)["muse_kernels.int8_product_between.default"] == 1
    torch.testing.assert_close(found(row(2))[0], due, rtol=1e-2, atol=1e-2)
