"""Backends of equal rank compete only where both serve what is asked; one that does not work is named."""

from __future__ import annotations

from typing import Any

import pytest

from muse_core.contracts import KernelRequest
from muse_core.errors import PluginError, RecipeError
from muse_core.model.kernels import BoundKernels, ranked, select_backend

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
