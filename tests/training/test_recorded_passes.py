"""The first replay of a recorded step, without a GPU: gradients of a step that is not the same twice, as of kernels
that add up in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_core.errors import RecipeError
from muse_core.metrics.accumulator import Packed
from muse_core.training import cuda_graph
from muse_core.training.cuda_graph import PLAIN, RecordedPasses
from muse_core.training.recorded_gradients import LOOKS
from muse_core.training.rounding import MOVES


class Replayed:
    """In the place of a CUDA graph: computes again and writes gradients where the first time left them."""

    def __init__(self, function: Callable[[], Any], weight: nn.Parameter):
        self.function, self.weight = function, weight
        self.returned = function()
        self.gradient = weight.grad

    def replay(self) -> None:
        before, self.weight.grad = self.weight.grad, None
        self.function()
        self.gradient.copy_(self.weight.grad)
        self.weight.grad = before
        torch.rand(1)  # a graph may count on further than what it launches draws


def without_a_gpu(monkeypatch: pytest.MonkeyPatch, weight: nn.Parameter) -> None:
    def captured(function: Callable[[], Any], refusal: str) -> Any:
        graph = Replayed(function, weight)
        return graph, graph.returned

    monkeypatch.setattr(cuda_graph, "captured", captured)
    monkeypatch.setattr(torch.cuda, "get_rng_state", torch.get_rng_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", torch.set_rng_state)


def first_replay(monkeypatch: pytest.MonkeyPatch, *shares: float) -> tuple[Tensor, list[float]]:
    """The gradient, and a number that each pass drew. ``shares``: of each pass behind the first steps, its gradient of
    the plain one's (1, 1)."""
    weight, of_pass, drawn = nn.Parameter(torch.zeros(2)), iter((*[1.0] * PLAIN, *shares)), []

    def compute(pieces: Any, carried: Any, whole: Tensor) -> tuple[Packed, list[Any]]:
        drawn.append(torch.rand(()).item())
        (weight * pieces[0] * next(of_pass)).sum().backward()
        return Packed((), torch.ones(1)), []

    without_a_gpu(monkeypatch, weight)
    passes = RecordedPasses(compute, {"weight": weight}, rounding=2.0**-7)
    for _ in range(PLAIN + 1):
        weight.grad = None
        passes([torch.ones(2)], [None], torch.tensor(1.0))
    assert passes.replayed and next(of_pass, None) is None
    return weight.grad, drawn[PLAIN:]


@pytest.mark.parametrize("shares", [(1.0, 0.0, 1.005), (1.0, 0.0, 1.1, 1.05), (1.0, 0.0, 1.1, 0.95)])
def test_the_first_replays_gradient_is_the_recordings(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float, ...]
) -> None:
    """Of the plain pass, of what a recording computes while it is made, which nobody reads, of the replay and, where
    that is far, of a second plain pass, whose gradient is for the comparison alone."""
    gradient, _ = first_replay(monkeypatch, *shares)
    torch.testing.assert_close(gradient, torch.full((2,), shares[2]))


def test_a_second_plain_pass_draws_what_the_first_drew_and_the_next_step_what_it_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    following = []
    for shares in ((1.0, 0.0, 1.0), (1.0, 0.0, 1.1, 1.05)):
        torch.manual_seed(0)
        _, (plain, _, *others) = first_replay(monkeypatch, *shares)
        assert others == [plain] * (len(shares) - 2)
        following.append(torch.rand(()).item())
    assert following[0] == following[1]


@pytest.mark.parametrize(("replayed", "again"), [(2.0, 1.0), (1.1, 1.03), (0.0, 1.01), (2.0, float("inf"))])
def test_a_replay_further_off_than_plain_steps_is_refused(
    monkeypatch: pytest.MonkeyPatch, replayed: float, again: float
) -> None:
    with pytest.raises(RecipeError, match="the recorded step gives weight another gradient than the plain one"):
        first_replay(monkeypatch, 1.0, 0.0, replayed, *[again] * (1 + MOVES))


def test_weights_are_moved_within_their_rounding_for_the_comparison_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pass that measures rounding reads moved weights; the next step reads what they were, to the last bit."""
    weight, read = nn.Parameter(torch.tensor([1.0, -3.0])), []

    def compute(pieces: Any, carried: Any, whole: Tensor) -> tuple[Packed, list[Any]]:
        read.append(weight.detach().clone())
        share = {PLAIN + 3: 1.1, PLAIN + 5: 1.25}.get(len(read), 1.0)  # the replay, and the pass with moved weights
        (weight * share).sum().backward()
        return Packed((), torch.ones(1)), []

    without_a_gpu(monkeypatch, weight)
    before = weight.detach().clone()
    passes = RecordedPasses(compute, {"weight": weight}, rounding=2.0**-7)
    for _ in range(PLAIN + 1):
        weight.grad = None
        passes([torch.ones(2)], [None], torch.tensor(1.0))
    *others, moved = read
    assert all(torch.equal(one, before) for one in others)
    assert not torch.equal(moved, before) and ((moved / before - 1).abs() <= 2.0**-8).all()
    assert torch.equal(weight.detach(), before)


def looks(monkeypatch: pytest.MonkeyPatch, *replays: float) -> tuple[list[float], list[bool]]:
    """Steps of which each replay has that share of the plain gradient: the first entries of the gradients that are
    left, and whether each is the recording's. Rounding moves the gradient by 0.2."""
    weight, left, replayed = nn.Parameter(torch.ones(2)), [], []
    shares = iter([1.0] * PLAIN)

    def compute(pieces: Any, carried: Any, whole: Tensor) -> tuple[Packed, list[Any]]:
        (weight * pieces[0] * next(shares)).sum().backward()
        return Packed((), torch.ones(1)), []

    def passes_of_one(share: float) -> list[float]:
        # The plain pass, what a recording computes while it is made, the replay; once more plainly, and moved weights.
        return [1.0, *([0.0] if not replayed[PLAIN:] else []), share, *([] if share == 1 else [1.0, *[1.2] * MOVES])]

    without_a_gpu(monkeypatch, weight)
    passes = RecordedPasses(compute, {"weight": weight}, rounding=2.0**-7)
    for _ in range(PLAIN):
        passes([torch.ones(2)], [None], torch.tensor(1.0))
        replayed.append(passes.replayed)
    for share in replays:
        shares = iter(passes_of_one(share))
        weight.grad = None
        passes([torch.ones(2)], [None], torch.tensor(1.0))
        assert next(shares, None) is None
        left.append(round(weight.grad[0].item(), 4))
        replayed.append(passes.replayed)
    return left, replayed[PLAIN:]


def test_a_doubtful_replay_is_looked_at_again_in_the_next_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which train with the plain pass's gradient meanwhile, and with the recording's once it was found the same."""
    left, replayed = looks(monkeypatch, 1.15, 1.15, 1.0)
    assert left == [1.0, 1.0, 1.0] and replayed == [False, False, True]


def test_a_replay_that_stays_doubtful_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"another gradient .* rounding explain 1\.4e-01"):
        looks(monkeypatch, *[1.15] * LOOKS)
    looks(monkeypatch, *[1.15] * (LOOKS - 1), 1.0)


def test_a_replay_beyond_doubt_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="another gradient"):
        looks(monkeypatch, 1.25)


class Layer:
    """A gradient with a factor of Python's, which a recording keeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.weight, self.factor, self.plain, self.full, self.told = nn.Parameter(torch.ones(2)), 1.0, 0, False, []
        without_a_gpu(monkeypatch, self.weight)
        substitute = cuda_graph.captured

        def captured(function: Callable[[], Any], refusal: str) -> Any:
            kept = self.factor

            def computed() -> Any:
                now, self.factor, full, self.full = self.factor, kept, self.full, False
                found = function()
                self.factor, self.full = now, full
                self.plain -= 1
                return found

            return substitute(computed, refusal)

        monkeypatch.setattr(cuda_graph, "captured", captured)
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        self.passes = RecordedPasses(self.compute, {"weight": self.weight}, rounding=2.0**-7, warn=self.told.append)

    def compute(self, pieces: Any, carried: Any, whole: Tensor) -> tuple[Packed, list[Any]]:
        self.plain += 1
        (self.weight * self.factor).sum().backward()
        if self.full:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Packed((), torch.ones(1)), []

    def launches(self, number: int) -> list[int]:
        """Which of so many launches were compared with a plain pass."""
        found = []
        for launch in range(self.passes.forms[0].launches + 1 if self.passes.forms else 1, number + 1):
            before, self.weight.grad = self.plain, None
            self.passes([torch.ones(2)], [None], torch.tensor(1.0))
            if self.plain > before:
                found.append(launch)
        return found


@pytest.fixture
def layer(monkeypatch: pytest.MonkeyPatch) -> Layer:
    found = Layer(monkeypatch)
    for _ in range(PLAIN):
        found.passes([torch.ones(2)], [None], torch.tensor(1.0))
    return found


def test_a_recording_is_compared_again_at_times(layer: Layer) -> None:
    assert layer.launches(2100) == [1, 10, 100, 1000, 2000]
    assert layer.passes.replayed and layer.weight.grad.tolist() == [1.0, 1.0] and not layer.told


def test_what_python_changes_after_the_recording_ends_the_run_at_the_next_comparison(layer: Layer) -> None:
    """A layer that counts steps by itself: the recording has the number that it had, and nobody is told by torch."""
    layer.launches(12)
    layer.factor = 2.0
    assert layer.launches(99) == []
    with pytest.raises(RecipeError, match=r"gives weight another gradient .*the plain one's 90 launches before"):
        layer.launches(100)


def test_where_no_memory_is_left_for_a_comparison_the_run_goes_on_and_says_so(layer: Layer) -> None:
    layer.launches(9)
    layer.full = True
    assert layer.launches(10) == [10]
    assert layer.passes.replayed and layer.weight.grad.tolist() == [1.0, 1.0]
    (told,) = layer.told
    assert "no memory for a plain pass beside the recorded one, so that launch 10" in told
    layer.full = False
    assert layer.launches(100) == [100] and len(layer.told) == 1


def test_a_first_comparison_without_memory_ends_the_run(layer: Layer) -> None:
    layer.full = True
    with pytest.raises(torch.OutOfMemoryError):
        layer.launches(1)
