"""What the scans combine is associative: an interpreted scan runs in order and would not tell.

The kernels' own functions are run on torch numbers, with stand-ins for the two operations of triton.language they use.
"""

from types import FunctionType, SimpleNamespace

import pytest
import torch

complex_kernels = pytest.importorskip("muse_kernels.triton.resolvent.complex")
moebius = pytest.importorskip("muse_kernels.triton.resolvent.moebius")


def normalised(*matrix):
    """The kernels' normalisation by exponent bits, in torch: one power of two for all eight parts."""
    exponent = torch.frexp(torch.stack(matrix).abs().amax(0)).exponent
    return tuple(torch.ldexp(x, -exponent) for x in matrix)


def in_torch(kernel):
    """A kernel function as a plain one, the functions it calls likewise."""
    function = getattr(kernel, "fn", kernel)
    names = {"tl": SimpleNamespace(fma=lambda a, b, c: a * b + c), "normalised": normalised}
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if name not in names and hasattr(called, "fn"):
            names[name] = in_torch(called)
    return FunctionType(function.__code__, names)


def maps(count: int, parts: int):
    random = torch.Generator().manual_seed(0)
    return [tuple(torch.randn(parts, 50, generator=random, dtype=torch.float64)) for _ in range(count)]


def test_linear_maps_compose_associatively():
    then = in_torch(complex_kernels.then_linear)
    a, b, c = maps(3, 4)
    torch.testing.assert_close(then(*then(*a, *b), *c), then(*a, *then(*b, *c)))
    assert not torch.allclose(torch.stack(then(*a, *b)), torch.stack(then(*b, *a)))


def test_linear_composition_is_first_then_second():
    then = in_torch(complex_kernels.then_linear)
    (fr, fi, br, bi), second = maps(2, 4)
    x = torch.tensor(0.3 - 0.7j, dtype=torch.complex128)
    step = lambda m, x: torch.complex(m[0], m[1]) * x + torch.complex(m[2], m[3])  # noqa: E731
    torch.testing.assert_close(step(then(fr, fi, br, bi, *second), x), step(second, step((fr, fi, br, bi), x)))


def test_matrices_multiply_associatively_up_to_a_power_of_two():
    then = in_torch(moebius.then_moebius)
    a, b, c = maps(3, 8)
    left, right = (torch.stack(x) for x in (then(*then(*a, *b), *c), then(*a, *then(*b, *c))))
    ratio = (left / right).median(0).values
    torch.testing.assert_close(left, right * ratio)
    assert torch.equal(ratio.log2().round().exp2(), ratio.abs()) or torch.allclose(ratio.log2(), ratio.log2().round())


def test_matrix_product_acts_as_one_map_after_the_other():
    then = in_torch(moebius.then_moebius)
    a, b = maps(2, 8)
    t = torch.tensor(0.2 + 0.4j, dtype=torch.complex128)

    def act(m, t):
        x0, x1, y0, y1 = (torch.complex(m[2 * k], m[2 * k + 1]) for k in range(4))
        return (x0 * t + x1) / (y0 * t + y1)

    torch.testing.assert_close(act(then(*a, *b), t), act(b, act(a, t)))
