"""What memories report of themselves is what their docstrings say."""

import pytest
import torch

from muse_core.testing.building import build_component
from muse_core.testing.sequences import make_tokens


@pytest.mark.parametrize("name", ["atlas", "qk-projection"])
def test_how_far_the_weights_moved_and_how_much_they_hold(name: str):
    """Both by norms, row by row and head by head."""
    layer = build_component("memory layer", name, {"chunk": 4} if name == "atlas" else {"persistent": 3}, heads=2)
    x = torch.randn(3, 64, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = layer(x, None, {}, make_tokens(3, 64))
    if name == "atlas":
        start = layer.dynamics.weights[0].detach()
        rows = [torch.linalg.vector_norm(one - start) ** 2 for one in found.state["first"]["weights"]]
        due = (sum(rows) / 3).sqrt() / torch.linalg.vector_norm(start)
        assert due > 1e-4 and float(found.metrics["moved"]) == pytest.approx(float(due), rel=1e-4)
    else:
        heads = found.state["memory"]["weights"].flatten(0, 1)
        due = sum(torch.linalg.matrix_norm(one) ** 2 for one in heads) / len(heads)
        assert due > 0 and float(found.metrics["energy"]) == pytest.approx(float(due), rel=1e-4)
