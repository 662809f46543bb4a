"""The kernels of the deep memory, small, in float32: Triton's interpreter has no bfloat16 products.

TRITON_INTERPRET=1 pytest kernels/tests
"""

import os

import pytest
import torch

from muse_kernels.reference import deep_memory as reference
from muse_kernels.testing.deep_memory import assert_close, draw, results

deep_memory = pytest.importorskip("muse_kernels.triton").deep_memory
operator = pytest.importorskip("muse_kernels.triton.deep_memory.operator")

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton reads TRITON_INTERPRET=1 when it is imported"
)

SIZES = {"batch": 1, "heads": 2, "key_width": 16, "hidden": 16, "dtype": torch.float32}


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 4},
        {"chunk": 4, "orthogonalise": False},
        {"chunk": 4, "orthogonalise": False, "window": 3, "resets": True},
        {"chunk": 8, "window": 12, "resets": True, "hidden": 32},
        {"chunk": 4, "kind": "without momentum", "orthogonalise": False, "resets": True},
    ],
    ids=str,
)
def test_equals_the_definition(options):
    problem = draw(19, **{**SIZES, **options})
    expected = results(problem.to(torch.float64), reference)
    assert_close(results(problem, deep_memory), expected, 2e-4)


@pytest.mark.parametrize("orthogonalise", [True, False])
def test_keys_wider_than_a_tile_of_rows(orthogonalise):
    problem = draw(8, **{**SIZES, "heads": 1, "key_width": 64}, chunk=4, offset=0, orthogonalise=orthogonalise)
    expected = results(problem.to(torch.float64), reference)
    assert_close(results(problem, deep_memory), expected, 2e-4)


@pytest.mark.parametrize("orthogonalise", [True, False])
def test_tiles_of_tokens_and_recomputed_states(orthogonalise, monkeypatch):
    problem = draw(41, **SIZES, chunk=20, offset=0, orthogonalise=orthogonalise)
    expected = results(problem.to(torch.float64), reference)
    for name in ("FORWARD", "BACKWARD", "TOKENS"):
        monkeypatch.setattr(operator, name, operator.Launch(16, 4))
    assert_close(results(problem, deep_memory, recompute=2), expected, 2e-4)
