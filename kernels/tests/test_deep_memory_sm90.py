"""What the deep memory's forward scan becomes on Hopper at K = 64, E = 128 in bfloat16: a ceiling that a regression
crosses."""

import os

import pytest
import torch

from muse_kernels.testing.deep_memory import draw

operator = pytest.importorskip("muse_kernels.triton.deep_memory.operator")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# By Triton 3.7.1, chunks of 16 tokens: stack as found, instructions with a tenth to spare.
CEILINGS = {True: (1576, 7340), False: (0, 2560)}


@pytest.mark.parametrize("orthogonalise", CEILINGS)
def test_ceilings(orthogonalise: bool, monkeypatch):
    recorder = sm90.Recorder(operator.scan_kernel)
    monkeypatch.setattr(operator, "scan_kernel", recorder)
    problem = draw(32, chunk=16, key_width=64, hidden=128, orthogonalise=orthogonalise, initial=False)
    problem = problem.to(torch.float32)
    for name in ("query", "key", "value"):
        setattr(problem, name, getattr(problem, name).detach().bfloat16())
    problem.run(operator.deep_memory)
    found = recorder.compile()
    stack, instructions = CEILINGS[orthogonalise]
    assert found.stack <= stack and found.instructions <= instructions, found
