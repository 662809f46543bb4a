"""The torch backend's work and memory grow linearly in N. Counted, not timed: elements that its operations touch."""

import math

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from muse_kernels import causal_resolvent_apply, causal_resolvent_diagonal, fast_weights, resolvent_diagonal

ROWS = 2
SHORT, LONG = 1_024, 4_096
VIEWS = {f"aten::{x}" for x in ("alias", "as_strided", "detach", "expand", "select", "slice", "unflatten", "view")}


def two_sided(sites: int) -> torch.Tensor:
    return resolvent_diagonal(torch.randn(ROWS, sites).requires_grad_(), 1.0, 1.0, 0.5 + 0.1j, backend="torch")


def left(sites: int) -> torch.Tensor:
    a = torch.randn(ROWS, sites).requires_grad_()
    return causal_resolvent_diagonal(a, 1.0, 1.0, 0.5 + 0.1j, backend="torch")[0]


def applied(sites: int) -> torch.Tensor:
    a, x = torch.randn(ROWS, sites).requires_grad_(), torch.randn(ROWS, sites, 2)
    return causal_resolvent_apply(a, 1.0, 1.0, 0.5 + 0.1j, x, backend="torch")[0][0]


def remembered(tokens: int) -> torch.Tensor:
    q, k, v = (torch.randn(1, tokens // 8, 1, 4).requires_grad_() for _ in range(3))
    gates = torch.zeros(1, tokens // 8, 1)
    return fast_weights(q, k, v, gates, gates + 0.5, backend="torch")[0]


def count(function, sites: int) -> tuple[int, int, int]:
    """Elements read by all operations of forward and backward, by the largest one, and bytes kept between the two."""
    kept = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            output = function(sites)
        output.abs().sum().backward()
    reads = [
        sum(math.prod(shape) for shape in event.input_shapes if shape and all(isinstance(n, int) for n in shape))
        for event in recorded.events()
        if event.name.startswith("aten::") and event.name not in VIEWS and not event.cpu_children
    ]
    return sum(reads), max(reads), sum(kept.values())


@pytest.mark.parametrize("function", (two_sided, left, applied, remembered))
def test_work_and_memory_are_linear(function):
    for what, short, long in zip(("work", "widest", "kept"), count(function, SHORT), count(function, LONG)):
        exponent = math.log(long / short) / math.log(LONG / SHORT)
        # A quadratic term that is a twentieth of the work at LONG shows.
        assert exponent <= 1.03, f"{what}: {short} to {long}, exponent {exponent:.2f}"
        assert what != "work" or exponent > 0.7, f"the count saw nothing grow: {short} to {long}"
