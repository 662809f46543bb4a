"""Updates of a recorded run: those of the plain optimisers to the last bit, whatever moves between two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_core.errors import RecipeError
from muse_core.training import update_rules
from muse_core.training.cuda_graph import MOST, PLAIN, RecordedCalls

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
MATRICES = [(48, 96), (96, 48), (48, 96), (64, 64), (96, 48), (8, 3)]
REST = [(257, 32), (32,), (1,), (7, 3, 2)]


def plainly(function: Callable[[], Any], read: Sequence[Tensor], written: Sequence[Tensor]) -> Any:
    assert len(read) == len(written)
    return function()


def muon(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return update_rules.Muon(parameters, lr=0.02, momentum=0.9, weight_decay=0.1)


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    groups = [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "weight_decay": 0.0}]
    return update_rules.FusedAdamW(groups, lr=4e-3, betas=(0.9, 0.95), eps=1e-8, fused=True)


def trained(
    make: Callable[..., Any], shapes: Sequence[tuple[int, ...]], device: str, calls: Any, *,
    between: Callable[[int, Any], None] = lambda step, optimizer: None, without: int | None = None,
) -> list[Tensor]:
    """Parameters and moments after twelve updates whose gradients lie where they were and whose rates change.
    ``without``: in step 4 this one has no gradient."""
    drawn = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=drawn).to(device)) for shape in shapes]
    gradients = [torch.empty_like(parameter) for parameter in parameters]
    optimizer = make(parameters)
    peaks = [group["lr"] for group in optimizer.param_groups]
    for step in range(12):
        for number, (parameter, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            gradient.copy_(torch.randn(gradient.shape, generator=drawn))
            parameter.grad = None if (step, number) == (4, without) else gradient
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * (step + 1) / 7
        between(step, optimizer)
        if calls is None:
            optimizer.step()
        else:
            optimizer.step_recorded(calls)
    moments = [value for parameter in parameters for _, value in sorted(optimizer.state[parameter].items())]
    return [value.detach().cpu() for value in (*parameters, *moments)]


def require_equal(found: list[Tensor], due: list[Tensor]) -> None:
    assert len(found) == len(due) and all(map(torch.equal, found, due))


@pytest.mark.parametrize("without", [None, 1, 3])
@pytest.mark.parametrize(("make", "shapes"), [(muon, MATRICES), (adam, REST)], ids=["muon", "adamw"])
def test_an_update_of_a_recorded_run_is_the_plain_one(make: Any, shapes: Any, without: int | None) -> None:
    due = trained(make, shapes, "cpu", None, without=without)
    require_equal(trained(make, shapes, "cpu", plainly, without=without), due)
    assert not torch.equal(due[2], trained(make, shapes, "cpu", None, without=2)[2])


def moved(step: int, optimizer: torch.optim.Optimizer) -> None:
    """As a restored checkpoint before step 6: the moments are others, in another place."""
    if step == 6:
        for state in optimizer.state.values():
            for name, value in state.items():
                state[name] = 0.5 * value if value.ndim else value.clone()


@GPU
@pytest.mark.parametrize("between", [lambda step, optimizer: None, moved], ids=["steady", "restored"])
@pytest.mark.parametrize(("make", "shapes"), [(muon, MATRICES), (adam, REST)], ids=["muon", "adamw"])
def test_on_a_gpu_a_recorded_update_has_the_bits_of_the_plain_one(make: Any, shapes: Any, between: Any) -> None:
    calls = RecordedCalls("updates")
    due = trained(make, shapes, "cuda", None, between=between)
    require_equal(trained(make, shapes, "cuda", calls, between=between), due)
    assert len(calls.recordings) == (0 if make is adam else 1 if between is not moved else 2)


@GPU
def test_a_recording_is_found_by_where_its_tensors_are() -> None:
    """Each of several places has its own, of which the oldest gives way; what moved is never computed from before."""
    calls, launched = RecordedCalls("doubles"), []
    places = [torch.zeros(4, device="cuda") for _ in range(MOST + 1)]

    def doubled(one: Tensor) -> Tensor:
        launched.append(one.data_ptr())
        return 2 * one

    for turn in range(PLAIN + 3):
        for number, place in enumerate(places):
            place.fill_(10 * turn + number)
            found = calls(lambda place=place: doubled(place), [place])
            assert found.tolist() == [2.0 * (10 * turn + number)] * 4
    assert len(calls.recordings) == MOST
    square = torch.arange(4.0, device="cuda").reshape(2, 2)
    for _ in range(PLAIN + 2):
        assert calls(lambda: (1 * square).flatten(), [square]).tolist() == [0, 1, 2, 3]
    turned, before = square.T, len(launched)
    assert calls(lambda: (1 * turned).flatten(), [turned]).tolist() == [0, 2, 1, 3], "other strides, another call"
    assert calls(lambda: doubled(square), [square], [square]).tolist() == [[0, 2], [4, 6]], "so is one that writes"
    assert len(launched) == before + 1


@GPU
def test_the_first_replay_moves_on_once_and_is_compared_with_the_plain_call() -> None:
    calls, number = RecordedCalls("sums"), torch.ones(3, device="cuda")
    found = [calls(lambda: number.add_(1) + 0, [], [number]).tolist()[0] for _ in range(PLAIN + 3)]
    assert found == [2.0, 3.0, 4.0, 5.0, 6.0] and len(calls.recordings) == 1
    step = [0.0]

    def counting() -> Tensor:
        step[0] += 1.0
        return number * step[0]

    other = RecordedCalls("products")
    for _ in range(PLAIN):
        other(counting, [number])
    with pytest.raises(RecipeError, match=r"recorded, products are others than plainly .*train\.cuda_graph = false"):
        other(counting, [number])


@GPU
def test_what_is_no_number_is_not_recorded_and_no_run_records_for_ever() -> None:
    calls, number = RecordedCalls("products"), torch.full((3,), float("nan"), device="cuda")
    for _ in range(PLAIN + 2):
        assert calls(lambda: 2 * number, [number]).isnan().all()
    assert not calls.recordings
    kept = []
    for turn in range(5 * MOST):
        kept.append(torch.full((3,), float(turn), device="cuda"))
        for _ in range(PLAIN + 1):
            assert calls(lambda one=kept[-1]: 2 * one, [kept[-1]]).tolist() == [2.0 * turn] * 3
    assert not calls.left and len(calls.recordings) == MOST
