"""The gated normalisation against its definition in float64, on every backend that can run here."""

import pytest
import torch
from torch import nn

from muse_kernels import gated_norm as public
from muse_kernels import unit_length
from muse_kernels.reference import gated_norm as reference
from muse_kernels.testing.places import assert_near, functions, results
from muse_kernels.torch import gated_norm as by_torch

DOUBLE = {"dtype": torch.float64, "device": "cpu"}
EVERYWHERE = pytest.mark.parametrize("place", functions("gated_norm"))


def draw(*shape: int, pairs: bool = False) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, generator=random, dtype=torch.complex128 if pairs else torch.float64)
    weight = torch.randn(shape[-1] * (2 if pairs else 1), generator=random, dtype=torch.float64)
    return [x, weight, torch.randn(*shape, generator=random, dtype=torch.float64)]


@EVERYWHERE
@pytest.mark.parametrize("pairs", (False, True))
@pytest.mark.parametrize("shape", ((2, 5, 3, 20), (7, 33), (65, 5), (16,)))
def test_equals_its_definition(place, shape, pairs):
    function, dtype, device, tolerance = place
    leaves = draw(*shape, pairs=pairs)
    assert_near(results(function, leaves, dtype, device), results(reference, leaves, **DOUBLE), tolerance)


@EVERYWHERE
@pytest.mark.parametrize("absent", (1, 2))
def test_without_the_gain_or_the_gate(place, absent):
    function, dtype, device, tolerance = place
    leaves = draw(3, 4, 6, pairs=True)
    leaves[absent] = None
    assert_near(results(function, leaves, dtype, device), results(reference, leaves, **DOUBLE), tolerance)


@EVERYWHERE
@pytest.mark.parametrize("pairs, shape, more", ((True, (3, 4, 6), 5), (False, (65, 16), 16), (True, (7, 33), 1)))
def test_lays_more_features_behind(place, pairs, shape, more):
    function, dtype, device, tolerance = place
    leaves = draw(*shape, pairs=pairs)
    leaves.append(torch.randn(*shape[:-1], more, generator=torch.Generator().manual_seed(2), dtype=torch.float64))

    def laid(function):
        return lambda x, weight, gate, behind: function(x, weight, gate, behind=behind)

    assert_near(results(laid(function), leaves, dtype, device), results(laid(reference), leaves, **DOUBLE), tolerance)
    wide = [*leaves[:3], torch.cat((leaves[3], leaves[3]), dim=-1)]
    sliced = lambda x, weight, gate, behind: function(x, weight, gate, behind=behind[..., more:])  # noqa: E731
    defined = lambda x, weight, gate, behind: reference(x, weight, gate, behind=behind[..., more:])  # noqa: E731
    assert_near(results(sliced, wide, dtype, device), results(defined, wide, **DOUBLE), tolerance)


@EVERYWHERE
def test_any_strides_and_no_rows(place):
    """Features of a wider tensor, heads before tokens, and a gradient that lies inside a wider one."""
    function, dtype, device, tolerance = place
    x, weight, gate = (t.to(device, dtype) for t in draw(2, 5, 4, 12))
    expected = function(x, weight, gate)
    apart = x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2)
    wide = torch.cat((gate, gate), dim=-1)[..., 12:]
    assert_near([function(apart, weight, wide)], [expected], tolerance)
    leaf = x.clone().requires_grad_()
    torch.cat((function(leaf, weight, gate), gate), dim=-1).square().sum().backward()
    narrow = x.clone().requires_grad_()
    function(narrow, weight, gate).square().sum().backward()
    assert_near([leaf.grad], [narrow.grad], tolerance)
    assert function(x[:0], weight, gate[:0]).shape == (0, 5, 4, 12)


@EVERYWHERE
@pytest.mark.parametrize("spread", (lambda w: torch.stack((w, 0 * w), dim=-1)[:, 0], lambda w: w[:1].expand(12)))
def test_a_strided_or_expanded_gain(place, spread):
    function, dtype, device, tolerance = place
    leaves = draw(2, 5, 12)
    leaves[1] = spread(leaves[1])
    moved = lambda x, weight, gate: function(x, spread(weight), gate)  # noqa: E731
    defined = lambda x, weight, gate: reference(x, spread(weight), gate)  # noqa: E731
    assert_near(results(moved, leaves, dtype, device), results(defined, leaves, **DOUBLE), tolerance)


@EVERYWHERE
def test_second_derivative(place):
    function, dtype, device, tolerance = place

    def penalty(function, dtype, device):
        leaves = [t.to(device, dtype).requires_grad_() for t in draw(2, 3, 4)]
        first = torch.autograd.grad(function(*leaves).pow(3).sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    assert_near(penalty(function, dtype, device), penalty(reference, **DOUBLE), 20 * tolerance)


@EVERYWHERE
def test_gives_rows_unit_length(place):
    """As plain torch does, a row of zeros too; of one as short as the least length, over the root of both squares."""
    function, dtype, device, tolerance = place
    x = draw(2, 5, 3, 20)[0]
    x[0, 0, 0] = 0.0
    found = results(lambda x: unit_length(x, function), [x], dtype, device)
    assert_near(found, results(unit_length, [x], **DOUBLE), tolerance)
    short = torch.zeros(1, 20, dtype=dtype, device=device)
    short[0, 3] = 1e-6
    assert abs(unit_length(short, function).norm().item() - 0.5**0.5) < 1e-6


def test_is_torchs_norm_times_silu():
    x, weight, gate = draw(3, 8)
    norm = nn.RMSNorm(8, eps=1e-6, dtype=torch.float64)
    norm.weight.data = weight
    torch.testing.assert_close(public(x, weight, gate), norm(x) * nn.functional.silu(gate))


def test_takes_the_gates_precision():
    x, weight, gate = draw(3, 8)
    assert public(x.float(), weight.float(), gate.bfloat16()).dtype == torch.bfloat16
    assert public(x.bfloat16(), weight.float(), None).dtype == torch.bfloat16


@pytest.mark.parametrize("gain", (False, True))
def test_half_precision_is_rounded_at_the_end_alone(gain):
    x, weight, gate = (t.bfloat16() for t in draw(50, 8))
    weight = weight if gain else None
    expected = reference(x, weight, gate).float()
    torch.testing.assert_close(by_torch(x, weight, gate).float(), expected, rtol=2**-8, atol=1e-6)


def test_double_precision_of_one_is_that_of_all():
    x, weight, gate = draw(3, 8)
    for given in ((x.float(), weight.float(), gate), (x.float(), weight, gate)):
        torch.testing.assert_close(public(*given), reference(*given), rtol=1e-13, atol=1e-13)
    triton = pytest.importorskip("muse_kernels.triton")
    with pytest.raises(ValueError, match="backend torch for float64"):
        triton.gated_norm(x.float(), weight.float(), gate)


def test_errors_name_the_argument():
    x, weight, gate = draw(3, 8)
    with pytest.raises(ValueError, match=r"weight must be \(8,\) beside x \(3, 8\)"):
        public(x, weight[:5], gate)
    with pytest.raises(ValueError, match=r"gate must be \(3, 8\) as x, got \(2, 8\)"):
        public(x, weight, gate[:2])
    with pytest.raises(ValueError, match=r"real, \(3, 'E'\) beside x \(3, 8\), got torch.float64 \(2, 4\)"):
        public(x, weight, gate, behind=gate[:2, :4])
    with pytest.raises(ValueError, match="x must be floating or complex"):
        public(x.long(), weight, gate)
