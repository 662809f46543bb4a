"""Windows with persistent tokens and the block on a GPU, in bfloat16, against float64 on the CPU."""

import pytest
import torch

from muse_core.testing import build_component
from muse_core.testing.sequences import make_tokens, tokens_on

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
WIDTH, LENGTH = 128, 700
CASES = [
    ("sliding-window", {"heads": 2, "window": 128}),
    ("sliding-window", {"heads": 2, "window": 64, "persistent": 0}),
    ("mag", {"heads": 2, "window": 64, "memory": {"use": "qk-projection", "heads": 2, "shard": 256}}),
]


@pytest.mark.parametrize("name, options", CASES, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("documents", [False, True])
def test_output_and_gradients_are_those_of_float64(name, options, documents):
    torch.manual_seed(0)
    exact = build_component("layer", name, options, width=WIDTH, dtype="float64", publish=()).double()
    layer = build_component("layer", name, options, width=WIDTH, dtype="bfloat16", device="cuda", publish=())
    layer.load_state_dict({key: value.float() for key, value in exact.state_dict().items()})
    x, tokens = torch.randn(2, LENGTH, WIDTH), make_tokens(2, LENGTH, documents=documents)
    expected_x, actual_x = x.double().requires_grad_(), x.cuda().requires_grad_()
    expected = exact(expected_x, None, {}, tokens).update
    with torch.autocast("cuda", torch.bfloat16):
        actual = layer(actual_x, None, {}, tokens_on(tokens, "cuda")).update.float()
    weight = torch.randn(2, LENGTH, WIDTH)
    (expected * weight).sum().backward()
    (actual * weight.cuda()).sum().backward()
    pairs = {"output": (actual, expected), "x": (actual_x.grad, expected_x.grad)}
    pairs |= {
        key: (layer.get_parameter(key).grad, parameter.grad) for key, parameter in exact.named_parameters()
    }
    worst = {
        key: ((one.detach().cpu().double() - other).norm() / other.norm().clamp_min(1e-12)).item()
        for key, (one, other) in pairs.items()
    }
    print(name, {key: f"{value:.1e}" for key, value in worst.items()})
    assert max(worst.values()) < 0.1, worst


@pytest.mark.parametrize("memory", ["qk-projection", "atlas"])
def test_a_step_is_recorded(memory):
    """Nothing in it waits for the host, or CUDA refuses; a replay gives the output of the step itself."""
    options = {"heads": 2, "window": 64, "memory": {"use": memory, "heads": 2}}
    layer = build_component("layer", "mag", options, width=WIDTH, dtype="bfloat16", device="cuda", publish=())
    x, tokens = torch.randn(2, 256, WIDTH, device="cuda"), tokens_on(make_tokens(2, 256, documents=False), "cuda")

    def step() -> torch.Tensor:
        layer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            update = layer(x, None, {}, tokens).update
        update.float().square().mean().backward()
        return update

    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    graph.replay()
    torch.testing.assert_close(recorded, step(), rtol=1e-2, atol=1e-2)
