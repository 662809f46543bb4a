"""What the deep memory's scans become on Hopper at K = 64."""

import contextlib
import os

import pytest
import torch

from muse_kernels.testing.deep_memory import draw

operator = pytest.importorskip("muse_kernels.triton.deep_memory.operator")
reading = pytest.importorskip("muse_kernels.triton.deep_memory.reading")
shares = pytest.importorskip("muse_kernels.triton.deep_memory.shares")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# By Triton 3.7.1, chunks of 16 tokens, E = 128: stack as found, instructions with a tenth to spare. (orthogonalise,
# which of the kernels that `recorded` returns).
CEILINGS = {(True, 0): (96, 7940), (False, 0): (72, 2740), (False, 1): (288, 3550), (False, 3): (0, 2660)}


def recorded(monkeypatch, dtype: torch.dtype, **options) -> tuple:
    """The launches in two chunks of 16 tokens: both scans', before and after the one backwards, and both readings'."""
    named = [(operator, "scan_kernel"), (operator, "scan_back_kernel")]
    named += [(operator, "trials_kernel"), (operator, "tokens_back_kernel")]
    named += [(reading, "read_kernel"), (reading, "read_back_kernel")]
    others = [(shares, "shares_kernel"), (shares, "shares_back_kernel")]
    recorders = [sm90.Recorder(getattr(module, name)) for module, name in named]
    for (module, name), recorder in zip(named + others, recorders + [sm90.Recorder(None)] * 2):
        monkeypatch.setattr(module, name, recorder)
    monkeypatch.setattr(torch.cuda, "device_of", lambda _: contextlib.nullcontext())
    problem = draw(32, chunk=16, initial=False, **options).to(torch.float32)
    for name in ("query", "key", "value"):
        setattr(problem, name, getattr(problem, name).detach().to(dtype).requires_grad_())
    output, _ = problem.run(operator.deep_memory)
    output.sum().backward()
    return tuple(recorders)


@pytest.mark.parametrize("orthogonalise, which", CEILINGS)
def test_ceilings(orthogonalise, which, monkeypatch):
    kernels = recorded(monkeypatch, torch.bfloat16, key_width=64, hidden=128, orthogonalise=orthogonalise)
    found = kernels[which].compile()
    if not sm90.COUNTS_HOLD:
        return
    stack, instructions = CEILINGS[orthogonalise, which]
    assert found.stack <= stack and found.instructions <= instructions, found


@pytest.mark.parametrize("orthogonalise", [True, False], ids=["orthogonalised", "gradient rule"])
def test_no_product_takes_its_first_operand_from_registers(orthogonalise, monkeypatch):
    """Which ptxas before CUDA 13.3 gets wrong in wgmma."""
    for kernel in recorded(monkeypatch, torch.bfloat16, key_width=64, hidden=16, orthogonalise=orthogonalise):
        found = kernel.compiled()
        assert "mma.sync" in found.asm["ptx"]
        assert not sm90.products_from_registers(found), kernel.kernel
