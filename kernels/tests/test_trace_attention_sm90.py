"""What trace attention's kernels become on Hopper in bfloat16."""

import os

import pytest
import torch

launch = pytest.importorskip("muse_kernels.triton.trace_attention.launch")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# ptxas before CUDA 13.3 may reuse the registers of a `wgmma`'s first operand while the product reads them (see
# triton/deep_memory/tiles.py). The tests on a GPU find these products right; no kernel may get more of them.
IN_REGISTERS = {
    64: {"rows_kernel": 8, "slots_gradient_kernel": 24, "queries_gradient_kernel": 16},
    128: {"rows_kernel": 8, "slots_gradient_kernel": 12, "queries_gradient_kernel": 8},
}
OTHERS = ("scales_kernel", "scaled_kernel", "inner_kernel", "scales_gradient_kernel")


@pytest.mark.parametrize("width", [64, 128])
def test_no_more_products_take_their_first_operand_from_registers(width, monkeypatch):
    for name in (*IN_REGISTERS[width], *OTHERS):
        monkeypatch.setattr(launch, name, sm90.Recorder(getattr(launch, name)))
    with torch.device("meta"):
        query, key, value = (torch.empty(2, 1024, 4, width, dtype=torch.bfloat16) for _ in range(3))
        bound = torch.empty(2, 4, 1024)
    inputs = launch.Inputs(query, key, value, bound, None, None, None, 0.125, 1.0)
    output, scale, _, rows = launch.forward(inputs)
    launch.backward(inputs, output, scale, rows, output, None, None)
    for name, most in IN_REGISTERS[width].items():
        found = len(sm90.products_from_registers(getattr(launch, name).compiled()))
        if sm90.COUNTS_HOLD:
            assert found <= most, f"{name}: {found}"
