"""A recorded step of generation on a GPU with fewer kernels around its products of integers.

Of one row a product takes 1.6 µs whatever it reads, as every other kernel does, and they wait for each other. So
products of one input become one, and what stands before or after a product is done in its kernel: the norm, the
conversion to a shorter dtype, SiLU of a gate times a value, and the sum with the stream. The numbers are rounded where
they were before.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.passes.shape_prop import ShapeProp, TensorMetadata

aten = torch.ops.aten


def simplified(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> fx.GraphModule:
    """The same step, in the graph that is given; it stays as it is without products of integers by ``muse_kernels``."""
    if not products(graph):
        return graph
    graph.graph.eliminate_dead_code()
    join(graph)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    with torch.no_grad(), torch.autocast(inputs[0].device.type, enabled=False):
        ShapeProp(graph).propagate(*inputs)
    for node in products(graph):
        with_what_stands_around(graph, node)
    graph.graph.eliminate_dead_code()
    graph.graph.lint()
    graph.recompile()
    return graph


def products(graph: fx.GraphModule) -> list[fx.Node]:
    """The calls of ``muse_kernels::int8_product``, which is there once the kernel has been called."""
    packet = getattr(torch.ops.muse_kernels, "int8_product", None)
    return [] if packet is None else graph.graph.find_nodes(op="call_function", target=packet.default)


def join(graph: fx.GraphModule) -> None:
    """One product for all of one input whose matrices are known."""
    groups: dict[fx.Node, list[fx.Node]] = {}
    for node in products(graph):
        if all(one.op == "get_attr" for one in node.args[1:]):
            groups.setdefault(node.args[0], []).append(node)
    for number, (x, nodes) in enumerate(groups.items()):
        if len(nodes) == 1:
            continue
        joined = []
        for place, name in ((1, "values"), (2, "scales")):
            name = f"joined_{name}_{number}"
            graph.register_buffer(name, torch.cat([graph.get_buffer(node.args[place].target) for node in nodes]))
            with graph.graph.inserting_before(nodes[0]):
                joined.append(graph.graph.get_attr(name))
        with graph.graph.inserting_before(nodes[0]):
            whole = graph.graph.call_function(nodes[0].target, (x, *joined))
        cut(graph, whole, [(node, len(graph.get_buffer(node.args[2].target))) for node in nodes])


def cut(graph: fx.GraphModule, whole: fx.Node, parts: list[tuple[fx.Node, int]]) -> None:
    """Every part, with its number of entries, as its place in the one row of ``whole``; neighbours that are laid side
    by side again are one view."""
    first, places = 0, {}
    for node, entries in parts:
        places[node] = first, first + entries
        first += entries
    for user in {user for node in places for user in node.users}:
        ends = side_by_side(user, places)
        if ends is not None:
            stand_for(graph, user, whole, ends)
    for node, ends in places.items():
        stand_for(graph, node, whole, ends)


def stand_for(graph: fx.GraphModule, node: fx.Node, whole: fx.Node, ends: tuple[int, int]) -> None:
    """The entries between two ends of ``whole`` in the place of ``node``, whose memory they would begin."""
    for user in list(node.users):
        if user.target is aten.as_strided.default:  # counts from the beginning of the memory
            offset = user.args[3] if len(user.args) > 3 and user.args[3] is not None else 0
            user.args = (whole, user.args[1], user.args[2], offset + ends[0])
    if node.users:
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.call_function(aten.slice.Tensor, (whole, -1, *ends)))
    graph.graph.erase_node(node)


def side_by_side(user: fx.Node, places: dict[fx.Node, tuple[int, int]]) -> tuple[int, int] | None:
    """Where ``user`` begins and ends, if it lays parts that follow each other along the last axis."""
    if user.target is not aten.cat.default or len(user.args) != 2 or user.args[1] != -1:
        return None
    ends = [places.get(one) for one in user.args[0]]
    if None in ends or any(before[1] != after[0] for before, after in zip(ends, ends[1:])):
        return None
    return ends[0][0], ends[-1][1]


def with_what_stands_around(graph: fx.GraphModule, node: fx.Node) -> None:
    """A product with what is before and after it, where nobody else reads that."""
    x, dtype = node.args[0], made(node).dtype
    gate = weight = stream = None
    eps, place = 0.0, node
    gated = gate_of(x, node)
    if gated is not None:
        x, gate = gated
    elif only(x, node, aten._to_copy.default) and set(x.kwargs) == {"dtype"}:
        normed = norm_of(x)
        x, weight, eps = (x.args[0], None, 0.0) if normed is None else normed
    user = next(iter(node.users)) if len(node.users) == 1 else None
    if user is not None and user.target is aten.add.Tensor and len(user.args) == 2 and not user.kwargs:
        other = user.args[0] if user.args[1] is node else user.args[1]
        if isinstance(other, fx.Node) and made(other)[:2] == made(user)[:2] and made(user).shape == made(node).shape:
            stream, place = other, user
    if x is node.args[0] and stream is None:
        return
    with graph.graph.inserting_before(place):
        arguments = (x, *node.args[1:], dtype, gate, weight, eps, stream)
        new = graph.graph.call_function(torch.ops.muse_kernels.int8_product_between.default, arguments)
    new.meta = dict(place.meta)
    place.replace_all_uses_with(new)
    graph.graph.erase_node(place)
    if place is not node:
        graph.graph.erase_node(node)


def gate_of(x: Any, node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """u and g where x is silu(g) · u, all in the dtype of the product ``node``."""
    if not only(x, node, aten.mul.Tensor):
        return None
    for silu, other in (x.args, x.args[::-1]):
        if only(silu, x, aten.silu.default) and isinstance(other, fx.Node):
            same = all(made(one)[:2] == (made(x).shape, made(node).dtype) for one in (x, other, silu.args[0]))
            return (other, silu.args[0]) if same else None
    return None


def norm_of(copy: fx.Node) -> tuple[fx.Node, fx.Node, float] | None:
    """What is normed, the weight and ε where ``copy`` converts the RMS norm over its last axis."""
    first = copy.args[0]
    if not only(first, copy, operator.getitem) or first.args[1] != 0 or list(first.args[0].users) != [first]:
        return None
    norm = first.args[0]
    if norm.target is not aten._fused_rms_norm.default or norm.kwargs or len(norm.args) != 4:
        return None
    x, shape, weight, eps = norm.args
    if weight is None or eps is None or list(shape) != [made(x).shape[-1]] or made(x).dtype != made(first).dtype:
        return None
    return x, weight, eps


def made(node: fx.Node) -> TensorMetadata:
    """Shape and dtype come first."""
    return node.meta["tensor_meta"]


def only(node: Any, user: fx.Node, target: Any) -> bool:
    """Whether a call of ``target`` is read by ``user`` alone."""
    return isinstance(node, fx.Node) and node.target is target and list(node.users) == [user]
