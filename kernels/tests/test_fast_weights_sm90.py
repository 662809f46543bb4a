"""What the fast-weights kernels become on Hopper at K = M = 128 in bfloat16: ceilings that a regression crosses."""

import os

import pytest
import torch

launch = pytest.importorskip("muse_kernels.triton.fast_weights.launch")
sm90 = pytest.importorskip("muse_kernels.testing.sm90")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels do not compile")

# By Triton 3.7.1: registers and stack as found, instructions with a tenth to spare. The delta rule's gathering of the
# gradients is the one kernel that spills.
CEILINGS = {
    ("hebbian", "prepare_kernel"): (108, 0, 1000),
    ("hebbian", "forward_kernel"): (225, 0, 1600),
    ("hebbian", "ends_kernel"): (255, 0, 1660),
    ("hebbian", "gradients_kernel"): (255, 0, 2700),
    ("delta", "prepare_kernel"): (153, 0, 2780),
    ("delta", "forward_kernel"): (255, 0, 1790),
    ("delta", "gradients_kernel"): (255, 40, 2930),
}


@pytest.fixture(scope="module", params=("hebbian", "delta"))
def recorded(request):
    """Every launch of a forward and backward pass over tensors that hold no memory."""
    names = [name for rule, name in CEILINGS if rule == request.param]
    with pytest.MonkeyPatch.context() as patch:
        recorders = {}
        for name in ("prepare_kernel", "forward_kernel", "states_kernel", "ends_kernel", "gradients_kernel"):
            recorders[name] = sm90.Recorder(getattr(launch, name))
            patch.setattr(launch, name, recorders[name])
        with torch.device("meta"):
            query, key, value = (torch.empty(4, 4096, 16, 128, dtype=torch.bfloat16) for _ in range(3))
            gates = (torch.empty(4, 4096, 16) for _ in range(2))
        delta = request.param == "delta"
        tuning = launch.tuning_of(torch.bfloat16, request.param, 128, 128, launch.DEEP_MEMORY)
        problem = launch.Problem(query, key, value, *gates, None, None, delta, False, 64, tuning)
        output, _, residual, prepared = launch.forward(problem)
        launch.backward(problem, residual if delta else value, prepared, output, None)
    return request.param, {name: recorders[name] for name in names}


def test_devices_with_less_shared_memory_and_narrow_heads_keep_two_stages():
    for rule in ("hebbian", "delta"):
        deep = launch.tuning_of(torch.bfloat16, rule, 128, 128, launch.DEEP_MEMORY)
        assert deep.forward.stages == deep.ends.stages == 3
        assert deep._replace(forward=None, ends=None) == launch.HALF[rule]._replace(forward=None, ends=None)
        assert launch.tuning_of(torch.bfloat16, rule, 128, 128, launch.DEEP_MEMORY - 1) == launch.HALF[rule]
        assert launch.tuning_of(torch.bfloat16, rule, 64, 128, launch.DEEP_MEMORY) == launch.HALF[rule]
        assert launch.tuning_of(torch.bfloat16, rule, 64, 64, launch.DEEP_MEMORY) == launch.NARROW[rule]
        assert launch.tuning_of(torch.float32, rule, 128, 128, launch.DEEP_MEMORY) == launch.SINGLE


def test_kernels_take_no_more_shared_memory_than_their_device_is_asked_for(recorded):
    rule, recorders = recorded
    for name, recorder in recorders.items():
        assert recorder.compiled().metadata.shared <= launch.DEEP_MEMORY, f"{rule} {name}"


def test_ceilings(recorded):
    rule, recorders = recorded
    for name, recorder in recorders.items():
        found = recorder.compile()
        if not sm90.COUNTS_HOLD:
            continue
        registers, stack, instructions = CEILINGS[rule, name]
        assert found.registers <= registers and found.stack <= stack, f"{rule} {name}: {found}"
        assert instructions / 3 <= found.instructions <= instructions, f"{rule} {name}: {found}"


# ptxas before CUDA 13.3 may reuse the registers of a `wgmma`'s first operand while the product reads them (see
# triton/deep_memory/tiles.py). The tests on a GPU find these products right; no kernel may get more of them.
IN_REGISTERS = {"hebbian": {"gradients_kernel": 8}, "delta": {"prepare_kernel": 40, "gradients_kernel": 20}}


def test_no_more_products_take_their_first_operand_from_registers(recorded):
    rule, recorders = recorded
    for name, recorder in recorders.items():
        found = len(sm90.products_from_registers(recorder.compiled()))
        if sm90.COUNTS_HOLD:
            assert found <= IN_REGISTERS[rule].get(name, 0), f"{rule} {name}: {found}"
