"""What the kernels of scores under a decay per channel become on Hopper."""

import os

import pytest
import torch

operator = pytest.importorskip("muse_kernels.triton.decayed_scores.operator")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# By Triton 3.7.1: registers and bytes of a thread's stack as found, instructions with a tenth to spare.
CEILINGS = {
    (torch.float32, True): {"scores_kernel": (151, 0, 3500), "scores_backward_kernel": (250, 0, 4240)},
    (torch.bfloat16, True): {"scores_kernel": (128, 16, 3430), "scores_backward_kernel": (255, 96, 4810)},
    (torch.float32, False): {"scores_kernel": (96, 8, 1700), "scores_backward_kernel": (124, 0, 2840)},
}


def recorded(patch, dtype, removing, batch=32, tokens=1024, width=96, chunk=64):
    """Both kernels as they would run on tensors that hold no memory."""
    recorders = {name: sm90.Recorder(getattr(operator, name)) for name in ("scores_kernel", "scores_backward_kernel")}
    for name, recorder in recorders.items():
        patch.setattr(operator, name, recorder)
    with torch.device("meta"):
        query, key, probe, insert = (torch.empty(batch, tokens, 4, width, dtype=dtype) for _ in range(4))
        decay, document = torch.empty(batch, tokens, 4, width), torch.empty(batch, -(-tokens // chunk), chunk).int()
        taken = (probe, insert) if removing else (None, None)
        found = operator._forward._init_fn(query, key, decay, *taken, document, chunk)
        gradients = list(found[: operator.RESULTS if removing else operator.WITHOUT_REMOVAL])
        operator._backward._init_fn(gradients, query, key, decay, *taken, document, chunk)
    return recorders


@pytest.mark.parametrize("dtype, removing", list(CEILINGS))
def test_ceilings(monkeypatch, dtype, removing):
    for name, recorder in recorded(monkeypatch, dtype, removing).items():
        found = recorder.compile()
        if not sm90.COUNTS_HOLD:
            continue
        registers, stack, instructions = CEILINGS[dtype, removing][name]
        assert found.registers <= registers and found.stack <= stack, f"{name}: {found}"
        assert instructions / 3 <= found.instructions <= instructions, f"{name}: {found}"


def test_any_number_of_rows_and_tokens(monkeypatch):
    """All programs lie along the first axis of the grid; a single token and short chunks compile."""
    for batch, tokens, chunk in ((70_000, 2, 2), (1, 1_000_000, 64), (8, 1, 1)):
        with monkeypatch.context() as patch:
            for name, recorder in recorded(patch, torch.float32, True, batch, tokens, 20, chunk).items():
                assert [len(grid) for grid in recorder.grids] == [1], name
                if tokens == 1:
                    recorder.compile()
