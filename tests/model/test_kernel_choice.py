"""Backends of equal rank compete only where both serve what is asked; one that does not work is named."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from muse_core.contracts import KernelRequest
from muse_core.errors import PluginError, RecipeError
from muse_core.model.kernels import BoundKernels, operation_of, ranked, select_backend

REQUEST = KernelRequest("fast_weights", "cpu", "float32")


class Backend:
    def __init__(self, rank: Any, *operations: str, answer: Any = None):
        self.rank, self.names, self.answer = rank, operations, answer

    def operations(self) -> dict[str, str]:
        return {name: "operator:mul" for name in self.names}

    def refuse(self, request: KernelRequest) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_equal_ranks_with_disjoint_operations_both_serve() -> None:
    backends = ranked([("a", Backend(5, "fast_weights")), ("b", Backend(5, "swirl"))])
    kernels = BoundKernels(backends, device="cpu", dtype="float32")
    kernels.bind("fast_weights")
    kernels.bind("swirl")
    assert {key: chosen.backend for key, chosen in kernels.selections.items()} == {"fast_weights": "a", "swirl": "b"}


OWN = "muse_core.model.convolution:causal_convolution"


@pytest.mark.parametrize("order", [ranked, tuple])
def test_what_the_core_has_itself_is_served_behind_every_backend(order: Any) -> None:
    offered = {"swirl": Backend(0, "swirl"), "elsewhere": Backend(-5, "causal_convolution", answer="is for GPUs")}
    kernels = BoundKernels(order(offered.items()), device="cpu", dtype="float32")
    function = kernels.bind("causal_convolution", otherwise=OWN)
    chosen = kernels.selections["causal_convolution"]
    refused = {("swirl", "does not have it"), ("elsewhere", "is for GPUs")}
    assert (chosen.backend, chosen.implementation, set(chosen.refused)) == ("core", OWN, refused)
    x, taps = torch.randn(1, 3, 2, dtype=torch.float64), torch.ones(2, 2, dtype=torch.float64)
    expected = torch.stack((x[:, 0], x[:, 0] + x[:, 1], x[:, 1] + x[:, 2]), 1)
    torch.testing.assert_close(function(x, taps), expected)  # of another precision than what was bound for
    serving = BoundKernels(order([("a", Backend(-5, "causal_convolution"))]), device="cpu", dtype="float32")
    serving.bind("causal_convolution", otherwise=OWN)
    assert serving.selections["causal_convolution"].backend == "a"
    with pytest.raises(RecipeError, match="swirl does not have it"):
        kernels.bind("causal_convolution")


def test_equal_ranks_where_one_refuses_are_no_tie() -> None:
    backends = ranked([("a", Backend(5, "fast_weights", answer="is for GPUs")), ("b", Backend(5, "fast_weights"))])
    assert select_backend(REQUEST, backends).backend == "b"


def test_a_tie_below_the_one_that_serves_is_none() -> None:
    backends = ranked([(name, Backend(rank, "fast_weights")) for name, rank in (("a", 1), ("b", 1), ("best", 9))])
    assert select_backend(REQUEST, backends).backend == "best"


def test_a_tie_on_a_wanted_operation_names_both_and_an_order_settles_it() -> None:
    tied = [("a", Backend(5, "fast_weights")), ("b", Backend(5, "fast_weights", "swirl"))]
    with pytest.raises(RecipeError, match='a and b both serve fast_weights and have the same rank 5; name the order: '):
        BoundKernels(ranked(tied), device="cpu", dtype="float32").bind("fast_weights")
    assert select_backend(REQUEST, tied).backend == "a"
    assert select_backend(REQUEST, tied[::-1]).backend == "b"


@pytest.mark.parametrize("answer", [False, 3, ["no"], KeyError("size"), SyntaxError("bad")])
def test_a_backend_that_does_not_answer_is_named(answer: Any) -> None:
    backends = ranked([("odd", Backend(9, "fast_weights", answer=answer)), ("good", Backend(1, "fast_weights"))])
    with pytest.raises(PluginError, match=r"^kernel backend 'odd' \(\S*test_kernel_choice\): "):
        select_backend(REQUEST, backends)


@pytest.mark.parametrize("rank", [None, 1.5, "high", True])
def test_a_rank_that_is_no_whole_number_names_its_backend(rank: Any) -> None:
    with pytest.raises(PluginError, match="kernel backend 'odd' .*: rank is "):
        ranked([("odd", Backend(rank, "fast_weights")), ("good", Backend(1))])


@pytest.mark.parametrize("reference", ["no_such_module:x", "operator:no_such", "operator", "math:pi", 3])
def test_an_implementation_that_cannot_be_used_names_its_backend(reference: Any) -> None:
    backend = Backend(1, "fast_weights")
    backend.operations = lambda: {"fast_weights": reference}
    with pytest.raises(PluginError, match="kernel backend 'odd'.*fast_weights"):
        BoundKernels(ranked([("odd", backend)]), device="cpu", dtype="float32").bind("fast_weights")


class Served(Backend):
    """Serves one device and one dtype alone."""

    def __init__(self, device: str, dtype: str, function: str):
        super().__init__(5, "swirl")
        self.place, self.function = (device, dtype), function

    def operations(self) -> dict[str, str]:
        return {"swirl": self.function}

    def refuse(self, request: KernelRequest) -> str | None:
        return None if (request.device, request.dtype) == self.place else "serves other tensors"


SERVED = [
    ("cpu", Served("cpu", "float32", "torch:add")),
    ("double", Served("cpu", "float64", "torch:sub")),
    ("meta", Served("meta", "float32", "torch:outer")),
]


def test_a_call_goes_by_the_device_and_the_precision_of_its_tensors() -> None:
    """A layer that is moved, or made double, after it was built."""
    kernels = BoundKernels(SERVED, device="cpu", dtype="float32")
    swirl, x = kernels.bind("swirl"), torch.ones(3)
    for _ in range(2):
        assert torch.equal(swirl(x, x), x + x)
        assert swirl(x.to("meta"), x.to("meta")).shape == (3, 3)
        assert torch.equal(swirl(x.double(), other=x.double()), torch.zeros(3, dtype=torch.float64))
    assert torch.equal(swirl(torch.tensor(2.0, dtype=torch.float64), x), x + 2), "a number is no tensor of float64"
    assert {key: chosen.backend for key, chosen in kernels.selections.items()} == {"swirl": "cpu"}
    with pytest.raises(RecipeError, match="swirl on meta in float64: cpu serves other tensors; double serves other"):
        swirl(x.double().to("meta"), x)


def test_a_compiled_call_goes_by_its_tensors_too() -> None:
    swirl = BoundKernels(SERVED, device="cpu", dtype="float32").bind("swirl")
    compiled = torch.compile(lambda x: swirl(x, x), backend="eager")
    assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
    for _ in range(2):
        assert not compiled(torch.ones(3, dtype=torch.float64)).any()
    torch.compiler.reset()
    whole = torch.compile(lambda x: swirl(x, x), backend="eager", fullgraph=True)
    assert torch.equal(whole(torch.ones(3)), torch.full((3,), 2.0))
    assert not whole(torch.ones(3, dtype=torch.float64)).any(), "what was selected before is traced"


def test_a_model_is_saved_whole_and_copied() -> None:
    """As torch.save(model) does and copy.deepcopy: what a layer calls goes with it."""
    layer = torch.nn.Identity()
    layer.swirl = BoundKernels(SERVED, device="cpu", dtype="float32").bind("swirl")
    x, written = torch.ones(3), io.BytesIO()
    layer.swirl(x.to("meta"), x.to("meta"))
    torch.save(layer, written)
    written.seek(0)
    for again in (torch.load(written, weights_only=False), copy.deepcopy(layer)):
        assert operation_of(again.swirl) == "swirl"
        assert torch.equal(again.swirl(x, x), x + x)
        assert torch.equal(again.swirl(x.double(), x.double()), torch.zeros(3, dtype=torch.float64))
        assert again.swirl(x.to("meta"), x.to("meta")).shape == (3, 3)
