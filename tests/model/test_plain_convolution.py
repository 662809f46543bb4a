"""The plain convolution's gradients are written by hand: those of its formula, to the second order."""

from __future__ import annotations

import pytest
import torch

from muse_core.contracts import Tokens
from muse_core.model import convolution
from muse_core.model.convolution import PlainConvolution
from muse_core.model.kernels import BoundKernels


@pytest.mark.parametrize("resets", [None, [0, 3, 4]], ids=["one document", "several"])
@pytest.mark.parametrize("span", [1, 4])
def test_gradients_are_those_of_the_formula(resets: list[int] | None, span: int) -> None:
    rows, length, channels = 2, 7, 3
    kernels = BoundKernels([], device="cpu", dtype="float64")
    layer = PlainConvolution(channels, span, torch.Generator().manual_seed(0), kernels.bind, bias=True).double()
    starts = None
    if resets is not None:
        starts = torch.zeros(rows, length, dtype=torch.bool)
        starts[0, resets] = True  # the other row goes on with the document that is carried in
    tokens = Tokens(torch.arange(length).expand(rows, length), resets=starts)

    def by_formula(x: torch.Tensor, before: torch.Tensor, *taps: torch.Tensor) -> torch.Tensor:
        padded = torch.cat((before, x), dim=1)
        document = torch.zeros(rows, length) if starts is None else starts.cumsum(1)
        document = torch.nn.functional.pad(document, (span - 1, 0))
        lags = range(span)
        same = [(document[:, span - 1 - lag : length + span - 1 - lag] == document[:, span - 1 :]) for lag in lags]
        return sum(
            taps[lag] * padded[:, span - 1 - lag : length + span - 1 - lag] * same[lag][..., None] for lag in lags
        )

    def by_layer(x: torch.Tensor, before: torch.Tensor, *taps: torch.Tensor) -> torch.Tensor:
        names = [f"taps.{lag}" for lag in range(span)]
        return torch.func.functional_call(layer, dict(zip(names, taps)), (x, before, tokens))[0] - layer.bias

    draw = torch.Generator().manual_seed(1)
    shapes = [(rows, length, channels), (rows, span - 1, channels), *[(channels,)] * span]
    given = [torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for shape in shapes]
    weight = torch.randn(rows, length, channels, generator=draw, dtype=torch.float64)
    ours, theirs = by_layer(*given), by_formula(*given)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for mine, due in zip(
        torch.autograd.grad((ours * weight).sum(), given), torch.autograd.grad((theirs * weight).sum(), given)
    ):
        torch.testing.assert_close(mine, due, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(by_layer, given)


def test_pieces_of_any_length_and_ragged_rows_carry_what_the_document_goes_on_from():
    rows, length, span = 3, 9, 4
    kernels = BoundKernels([], device="cpu", dtype="float64")
    draw = torch.Generator().manual_seed(0)
    layer = PlainConvolution(2, span, draw, kernels.bind).double()
    x = torch.randn(rows, length, 2, generator=draw, dtype=torch.float64)
    starts = torch.zeros(rows, length, dtype=torch.bool)
    starts[0, [0, 5]] = starts[1, [2, 3, 8]] = True

    def read(part, state, resets, valid=None):
        return layer(part, state, Tokens(torch.zeros(part.shape[:2]), resets=resets, valid=valid))

    whole, last = read(x, None, starts)
    for cut in range(1, length):
        first, state = read(x[:, :cut], None, starts[:, :cut])
        second, after = read(x[:, cut:], state, starts[:, cut:])
        torch.testing.assert_close(torch.cat((first, second), 1), whole)
        torch.testing.assert_close(after, last)
        shorter = torch.tensor([cut, length, min(cut + 2, length)])
        _, ragged = read(x, None, starts, torch.arange(length) < shorter[:, None])
        for row, real in enumerate(shorter.tolist()):
            alone = read(x[row : row + 1, :real], None, starts[row : row + 1, :real])[1]
            torch.testing.assert_close(ragged[row : row + 1], alone)


def test_its_copy_in_the_kernels_computes_the_same():
    """docs/decisions/convolutions-twice.md"""
    ours, theirs = convolution, pytest.importorskip("muse_kernels.torch.short_convolution")
    pairs = [(getattr(ours._ShiftedSum, name), getattr(theirs._ShiftedSum, name)) for name in ("forward", "backward")]
    for own, other in [*pairs, (ours._shifted, theirs._shifted), (ours._within, theirs._within)]:
        one, two = own.__code__, other.__code__
        numbers = [[x for x in code.co_consts if type(x) is not str] for code in (one, two)]  # without docstrings
        assert (one.co_code, one.co_names, numbers[0]) == (two.co_code, two.co_names, numbers[1]), own.__name__
