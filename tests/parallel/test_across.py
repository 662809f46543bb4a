"""Operations over tokens that are divided give what one process computes, forward and backward, in float64. The
processes are threads that share one graph; processes of their own train in test_processes.py."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import muse_kernels
from muse_core import fast_weights
from muse_core.errors import RecipeError
from muse_core.model import across

B, H, N, M, K = 2, 3, 24, 4, 5


def on_parts(
    parts: int, form: Callable[..., Any], kernel: Callable[..., Any], given: Callable[[slice], Any]
) -> list[Any]:
    """What each of so many processes computes of its slice of the tokens."""
    meeting, table = threading.Barrier(parts), [None] * parts

    def one(rank: int) -> Any:
        def gather(value: Tensor) -> Tensor:
            table[rank] = value
            meeting.wait(timeout=30)
            values = torch.stack(list(table))
            meeting.wait(timeout=30)
            return values

        size = N // parts
        positional, named = given(slice(rank * size, (rank + 1) * size))
        return form(kernel, gather, rank, *positional, **named)

    with ThreadPoolExecutor(parts) as pool:
        return list(pool.map(one, range(parts)))


def compare(whole: Sequence[Tensor], divided: Sequence[Tensor], leaves: Sequence[Tensor]) -> None:
    """Results and the gradients of a sum of them with fixed weights."""
    gradients = []
    for results in (whole, divided):
        generator = torch.Generator().manual_seed(1)
        loss = sum(
            (torch.randn(x.shape, dtype=x.dtype, generator=generator) * x).sum() for x in results
        )
        loss = loss.real if loss.is_complex() else loss
        gradients.append(torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True))
    for one, other in zip(whole, divided, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-11)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-10, atol=1e-10)


def lattice() -> tuple[list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)  # noqa: E731
    diagonal = torch.complex(draw(B, H, N), -draw(B, H, N).abs() * 0.1).requires_grad_()
    starts = torch.zeros(B, 1, N, dtype=torch.bool)
    starts[0, 0, 9] = starts[1, 0, 16] = True
    coupling = (1 + 0.1 * draw(1, H, 1)).requires_grad_()
    energy = torch.complex(draw(H, 1), 0.05 + draw(H, 1).abs()).requires_grad_()
    return [diagonal, coupling, energy], starts


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("carried", [False, True])
def test_the_resolvent_over_divided_tokens_is_that_of_one_process(parts: int, carried: bool) -> None:
    (diagonal, coupling, energy), starts = lattice()
    lower = torch.where(starts, 0, coupling.expand(B, H, N))
    values = torch.randn(B, H, N, M, dtype=torch.float64, requires_grad=True)
    theta = torch.complex(torch.randn(B, H).double(), 1 + torch.rand(B, H).double()).requires_grad_()
    before = torch.randn(B, H, M, dtype=torch.complex128, requires_grad=True)
    leaves = [diagonal, coupling, energy, values, *([theta, before] if carried else [])]

    def given(here: slice) -> Any:
        sites = (diagonal[..., here], lower[..., here], lower[..., here], energy, values[..., here, :])
        return sites, {"initial": (theta, before) if carried else None}

    (y, green), final = muse_kernels.causal_resolvent_apply(
        *given(slice(None))[0], initial=given(slice(None))[1]["initial"], backend="torch"
    )
    found = on_parts(parts, across.causal_resolvent_apply, _torch("causal_resolvent_apply"), given)
    divided = [torch.cat([one[0][0] for one in found], -2), torch.cat([one[0][1] for one in found], -1)]
    compare([y, green, *final], [*divided, *found[0][1]], leaves)

    def lattice_alone(here: slice) -> Any:
        return given(here)[0][:4], {"initial": theta if carried else None}

    green, last = muse_kernels.causal_resolvent_diagonal(
        *lattice_alone(slice(None))[0], initial=theta if carried else None, backend="torch"
    )
    found = on_parts(parts, across.causal_resolvent_diagonal, _torch("causal_resolvent_diagonal"), lattice_alone)
    compare([green, last], [torch.cat([one[0] for one in found], -1), found[-1][1]], leaves[:3] + leaves[4:5])


def test_the_gradient_of_a_product_is_torchs_with_any_number_of_zeros() -> None:
    x = torch.randn(4, 6, dtype=torch.complex128, generator=torch.Generator().manual_seed(0))
    x[1, 2] = x[2, 0] = x[2, 5] = x[3, 1] = 0
    weights = torch.randn(4, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    found = []
    for product in (across._Product.apply, lambda x: x.prod(-1)):
        leaf = x.clone().requires_grad_()
        value = product(leaf)
        found.append((value.detach(), *torch.autograd.grad((weights * value).sum().real, leaf)))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("rule", ["hebbian", "delta"])
@pytest.mark.parametrize("read", ["after", "before"])
@pytest.mark.parametrize("widest", [128, 0])
def test_fast_weights_over_divided_tokens_are_those_of_one_process(
    parts: int, rule: str, read: str, widest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a kernel takes the values and the transition at once, and where it does not."""
    monkeypatch.setattr(fast_weights, "WIDEST", widest)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    query, value = draw(B, N, H, K).requires_grad_(), draw(B, N, H, M).requires_grad_()
    key = torch.nn.functional.normalize(draw(B, N, H, K), dim=-1).requires_grad_()
    decay, rate = (-0.1 * torch.rand(B, N, H).double()).requires_grad_(), torch.rand(B, N, H).double().requires_grad_()
    initial = draw(B, H, K, M).requires_grad_()
    resets = torch.zeros(B, N, dtype=torch.bool)
    resets[0, 5] = resets[1, 12] = True

    def given(here: slice) -> Any:
        writes = [x[:, here] for x in (query, key, value, decay, rate)]
        return writes, {"rule": rule, "initial": initial, "resets": resets[:, here], "read": read}

    positional, named = given(slice(None))
    output, final = muse_kernels.fast_weights(*positional, **named, backend="torch")
    found = on_parts(parts, across.fast_weights, _torch("fast_weights"), given)
    divided = [torch.cat([one[0] for one in found], 1), found[0][1]]
    compare([output, final], divided, [query, key, value, decay, rate, initial])


def test_a_convolution_over_divided_tokens_is_that_of_one_process() -> None:
    channels = H * (2 * K + M)
    x = torch.randn(B, N, channels, dtype=torch.float64, requires_grad=True)
    taps = torch.randn(4, channels, dtype=torch.float64, requires_grad=True)
    resets = torch.zeros(B, N, dtype=torch.bool)
    resets[0, 11] = resets[1, 12] = True

    def given(here: slice) -> Any:
        return (x[:, here], taps, H, K), {"resets": resets[:, here]}

    whole = muse_kernels.short_convolution(x, taps, H, K, resets=resets, backend="torch")
    found = on_parts(2, across.convolution, _torch("short_convolution"), given)
    compare(whole, [torch.cat(parts, 1) for parts in zip(*found, strict=True)], [x, taps])
    with pytest.raises(RecipeError, match="looks back further than the 2 of a process - take longer rows"):
        across.convolution(lambda: None, lambda x: x, 0, x[:, :2], taps, H, K)


def test_an_operation_without_such_a_form_is_refused() -> None:
    with pytest.raises(RecipeError, match="resolvent_diagonal has no form"):
        across.across(lambda: None, "resolvent_diagonal", None)


def _torch(operation: str) -> Callable[..., Any]:
    def kernel(*given: Any, **named: Any) -> Any:
        return getattr(muse_kernels, operation)(*given, **named, backend="torch")

    return kernel


def test_a_backend_that_computes_parts_itself_is_asked_first() -> None:
    """With what its kernel is bound with; where it does not serve, and for whole rows, the kernel is."""

    class Processes:
        divided, rank = True, 1

        def collect(self, value: Tensor) -> Tensor:
            return value

        def gather(self, value: Tensor) -> Tensor:
            raise AssertionError("the general form is not asked")

        def tied(self, value: Tensor) -> Tensor:
            return value

    def norm(x: Tensor, *, chunk: int) -> Tensor:
        return x + chunk

    def of_part(collect: Any, rank: int, x: Tensor, *, chunk: int) -> Tensor | None:
        return x * 100 + rank * 10 + chunk if x.item() else None

    norm.divided = of_part  # type: ignore[attr-defined]
    there = Processes()
    bound = across.across(partial(norm, chunk=3), "gated_norm", there)
    assert bound(torch.tensor(2.0)).item() == 213
    assert bound(torch.tensor(0.0)).item() == 3
    there.divided = False
    assert bound(torch.tensor(2.0)).item() == 5
