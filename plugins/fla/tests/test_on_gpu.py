"""fla-core's kernels on a GPU against the torch backend in float64 on the same rounded inputs."""

import pytest
import torch
from muse_fla.backend import Fla, missing
from muse_fla.fast_weights import fast_weights
from muse_fla.options import FlaOptions

from muse_core.contracts import KernelRequest
from muse_kernels.testing.fast_weights import draw
from muse_kernels.torch import fast_weights as chunkwise

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(missing() is not None, reason=str(missing())),
]

REQUEST = KernelRequest("fast_weights", "cuda", "bfloat16", {"key": 64, "value": 80}, frozenset({"gradient"}))


def problem(tokens: int, key_width: int, value_width: int):
    """Query, key and value in bfloat16, the rest in float32, as a model calls it."""
    drawn = draw(tokens, key_width=key_width, value_width=value_width).to(torch.bfloat16, "cuda")
    for name in ("log_decay", "rate", "initial"):
        setattr(drawn, name, getattr(drawn, name).detach().float().requires_grad_())
    return drawn


@pytest.mark.parametrize("rule", ("hebbian", "delta"))
@pytest.mark.parametrize(
    "tokens, key_width, value_width, read", [(333, 64, 80, "before"), (200, 256, 256, "after"), (1, 16, 16, "after")]
)
def test_near_float64(rule, tokens, key_width, value_width, read):
    given = problem(tokens, key_width, value_width)
    expected = given.to(torch.float64).run(chunkwise, rule=rule, read=read)
    for got, want in zip(given.run(fast_weights, rule=rule, read=read), expected, strict=True):
        assert (got - want).norm() <= 1.5e-2 * want.norm()


@pytest.mark.parametrize("rule", ("hebbian", "delta"))
def test_gradients_are_right_or_refused_by_both(rule):
    """Where fla-core refuses, so does the backend, and where the backend serves, gradients are those of float64."""
    given = problem(200, 64, 80)
    (output, _), leaves = given.run(fast_weights, rule=rule), given.leaves[:3]
    if Fla(FlaOptions(), None).refuse(REQUEST):
        with pytest.raises(RuntimeError):
            torch.autograd.grad(output.float().sum(), leaves)
        return
    exact = given.to(torch.float64)
    expected = torch.autograd.grad(exact.run(chunkwise, rule=rule)[0].sum(), exact.leaves[:3])
    for got, want in zip(torch.autograd.grad(output.float().sum(), leaves), expected, strict=True):
        assert (got - want).norm() <= 1.5e-2 * want.norm()
