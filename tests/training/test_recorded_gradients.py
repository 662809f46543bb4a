"""The gradients of a recorded step beside those of the plain one, without a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from muse_core.errors import RecipeError
from muse_core.parallel.one import ONE
from muse_core.training.recorded_gradients import found_same, require_same
from muse_core.training.rounding import MOVES


def test_a_recording_with_other_gradients_is_refused_by_name() -> None:
    own = {"a": torch.ones(4), "b": torch.full((3,), 1e-3)}
    require_same(own, {"a": torch.ones(4), "b": torch.full((3,), 1.001e-3)})
    for wrong in (torch.zeros(3), torch.full((3,), float("nan")), torch.full((3,), 2e-3)):
        with pytest.raises(RecipeError, match="gives b another gradient"):
            require_same(own, {"a": torch.ones(4), "b": wrong})
    with pytest.raises(RecipeError, match="has a gradient of b only once"):
        require_same(own, {"a": torch.ones(4)})


def test_a_recording_may_differ_by_what_is_explained() -> None:
    """In a sum that nearly cancels, as that of a decay's bias."""
    own, recorded = {"a": torch.tensor([1.0, 1e-3])}, {"a": torch.tensor([1.0, 3e-2])}
    with pytest.raises(RecipeError, match=r"another gradient .* \(2\.9e-02 apart, where its norm is 1\.0e\+00\)"):
        require_same(own, recorded)
    require_same(own, recorded, {"a": 3e-2})
    with pytest.raises(RecipeError, match=r"1\.0e\+00, and repeats and rounding explain 2\.0e-02\)"):
        require_same(own, recorded, {"a": 2e-2})
    with pytest.raises(RecipeError, match="gives a another gradient"):  # of which one is a NaN all are
        require_same(own, {"a": torch.tensor([1.0, float("nan")])}, {"a": 1e-2})


def test_a_gradient_that_is_zero_recorded_alone_is_refused_whatever_rounding_does() -> None:
    """In bfloat16 rounding may move a gradient by more than its norm."""
    own = {"a": torch.ones(4), "b": torch.zeros(4)}
    require_same(own, {"a": -torch.ones(4), "b": torch.zeros(4)}, {"a": 4.5, "b": 0.0})
    with pytest.raises(RecipeError, match=r"leaves the gradient of a at zero, whose norm is 2\.0e\+00"):
        require_same(own, {"a": torch.zeros(4), "b": torch.zeros(4)}, {"a": 4.5, "b": 0.0})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_gradients_whose_squares_are_beyond_their_dtype_are_compared(size: float, dtype: torch.dtype) -> None:
    own = {"a": torch.full((4,), size, dtype=dtype)}
    require_same(own, {"a": own["a"].clone()}, {"a": 0.0})
    for share in (0.9, float("nan")):
        with pytest.raises(RecipeError, match="another gradient"):
            require_same(own, {"a": own["a"] * share}, {"a": 0.0})


def answers(*changes: float):
    """Plain passes once more: gradients of (1, 1 + change), and how many were made."""
    made: list[float] = []

    def passes():
        for change in changes:
            made.append(change)
            yield {"a": torch.tensor([1.0, 1.0 + change])}

    return passes(), made


def test_passes_are_made_again_only_where_a_gradient_is_far() -> None:
    """And with several processes by all of them, whichever it is far in: the pass exchanges between them."""
    own = {"a": torch.ones(2)}
    again, made = answers(0.05)
    assert found_same(own, {"a": torch.ones(2)}, again, ONE, last=False)
    assert not made
    assert found_same(own, {"a": torch.tensor([1.0, 1.1])}, again, ONE, last=False)
    assert made == [0.05]
    ranks = SimpleNamespace(gather=lambda far: [far, True])
    again, made = answers(*[0.0] * (1 + MOVES))
    assert not found_same(own, {"a": torch.ones(2)}, again, ranks, last=False)  # another process raises its refusal
    assert len(made) == 1 + MOVES


@pytest.mark.parametrize("changes", [
    (0.034,), (0.0, 0.21), (0.0, 0.01, float("inf"), 0.21), (0.0, *[0.19] * (MOVES - 1), 0.21),
], ids=["a repeat", "a move", "a later move", "the last move"])  # fmt: skip
def test_what_repeats_and_rounding_explain(changes: tuple[float, ...]) -> None:
    """Of 0.1: three times what a second plain step differs by, or half of what the largest move does."""
    own, recorded = {"a": torch.ones(2)}, {"a": torch.tensor([1.0, 1.1])}
    again, made = answers(*changes)
    assert found_same(own, recorded, again, ONE, last=True)
    assert made == list(changes)
    again, made = answers(0.033, *[0.19] * (MOVES - 1), float("nan"))
    with pytest.raises(RecipeError, match="another gradient .* and repeats and rounding explain 9"):
        found_same(own, recorded, again, ONE, last=True)
    assert len(made) == 1 + MOVES


@pytest.mark.parametrize(("change", "doubtful"), [(0.049, None), (0.051, True), (0.099, True), (0.101, False)])
def test_a_gradient_as_far_as_rounding_alone_takes_it_is_doubtful(change: float, doubtful: bool | None) -> None:
    """Rounding does 0.1: half of it is allowed, all of it to be looked at again, and in the last look refused."""
    own, recorded = {"a": torch.ones(2, dtype=torch.float64)}, {"a": torch.tensor([1.0, 1 + change]).double()}

    def look(last: bool) -> bool:
        return found_same(own, recorded, answers(0.0, *[0.1] * MOVES)[0], ONE, last=last)

    if doubtful is None:
        assert look(True)
        return
    if doubtful:
        assert not look(False)
    with pytest.raises(RecipeError, match="gives a another gradient"):
        look(doubtful)
