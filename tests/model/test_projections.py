"""Maps of one input, and the scores of a vocabulary."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from muse_core.model.projections import aligned, plain, scores, widened


@pytest.mark.parametrize("classes", [1, 8, 257])
def test_rows_of_zeros_change_neither_scores_nor_gradients(classes):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 5, 24, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(classes, 24, dtype=torch.float64, generator=generator, requires_grad=True)
    found, due = aligned(x, weight), torch.einsum("bnd,vd->bnv", x, weight)
    assert found.shape == (3, 5, classes)
    torch.testing.assert_close(found, due, rtol=0, atol=1e-13)
    into = torch.randn(due.shape, dtype=torch.float64, generator=generator)
    for one, other in zip(torch.autograd.grad(found, (x, weight), into), torch.autograd.grad(due, (x, weight), into)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-13)


def test_scores_on_a_cpu_are_the_plain_product():
    x, weight = torch.randn(4, 300, 16), torch.randn(257, 16)
    assert torch.equal(scores(x, weight), F.linear(x, weight))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("vectors", [16, 4096])
def test_scores_on_a_gpu_are_those_of_float64(vectors):
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(vectors, 64, generator=generator), torch.randn(257, 64, generator=generator)
    own = [one.cuda().requires_grad_() for one in (x, weight)]
    with torch.autocast("cuda", torch.bfloat16):
        found = scores(*own)
    found.float().logsumexp(-1).sum().backward()
    exact = [one.double().requires_grad_() for one in (x, weight)]
    due = F.linear(*exact)
    due.logsumexp(-1).sum().backward()
    torch.testing.assert_close(found.detach().cpu().double(), due.detach(), rtol=2e-2, atol=2e-1)
    for one, other in zip(own, exact):
        difference = (one.grad.cpu().double() - other.grad).norm() / other.grad.norm()
        assert difference < 2e-2


def test_a_map_with_a_hook_or_of_another_class_is_not_plain():
    class Scaled(nn.Linear):
        pass

    linear = nn.Linear(4, 3, bias=False)
    assert plain(linear)
    assert not plain(Scaled(4, 3))
    with_hook = linear.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert not plain(linear)
    with_hook.remove()
    assert plain(linear)


@pytest.mark.parametrize("bias", [False, True])
def test_of_half_precision_the_product_is_rounded_and_the_bias_is_not(bias):
    generator = torch.Generator().manual_seed(0)
    maps = [nn.Linear(64, 3, bias=bias), nn.Linear(64, 2, bias=bias)]
    for one in maps:
        nn.init.normal_(one.weight, std=1 / 8, generator=generator)
        if bias:
            nn.init.constant_(one.bias, -9.0 + 2**-12)  # bf16 would take it for -9
    x = torch.randn(2, 7, 64, generator=generator)
    single = widened(x, maps)
    torch.testing.assert_close(single, torch.cat([one(x) for one in maps], dim=-1), rtol=0, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = widened(x.bfloat16(), maps)
    assert half.dtype == single.dtype == torch.float32
    weight = torch.cat([one.weight for one in maps])
    product = F.linear(x.bfloat16(), weight.bfloat16())
    assert product.dtype == torch.bfloat16
    due = product.float() + (torch.cat([one.bias for one in maps]) if bias else 0)
    assert torch.equal(half, due)
    assert (half - single).abs().max() < 0.02
    half.sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for one in maps for parameter in one.parameters())


def test_another_module_in_the_place_of_a_map_is_called_in_single_precision():
    class Other(nn.Module):
        def forward(self, x):
            assert x.dtype == torch.float32
            return 2 * x[..., :2]

    x, linear = torch.randn(3, 64), nn.Linear(64, 2)
    found = widened(x.bfloat16(), [linear, Other()])
    single = x.bfloat16().float()
    torch.testing.assert_close(found, torch.cat((linear(single), 2 * single[:, :2]), dim=-1), rtol=0, atol=1e-5)
