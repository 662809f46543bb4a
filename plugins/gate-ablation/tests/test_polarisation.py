"""The loss that makes gates decide: its formula, its annealing, and that it works."""

import math

import pytest
import torch
from muse_gate_ablation.statistics import entropy, undecided

from muse_core.contracts import Tokens
from muse_core.errors import RecipeError
from muse_core.testing import build_component


def make(**options):
    return build_component("layer", "polarisation", options, signals={"gate": (6,)}).double()


def run(layer, gate, valid=None):
    x = torch.randn(*gate.shape[:2], 16, dtype=gate.dtype)
    return layer(x, None, {"gate": gate}, Tokens(torch.arange(gate.shape[1]).expand(len(gate), -1), valid=valid))


def test_the_loss_is_the_weighted_sum_over_tokens_of_how_undecided_gates_are():
    torch.manual_seed(0)
    gate = torch.rand(2, 5, 6, dtype=torch.float64)
    step = run(make(start=3.0, end=3.0), gate)
    expected = 3.0 * sum((1 - abs(2 * g - 1)) / 6 for g in gate.flatten().tolist())
    assert step.losses["polarisation"].item() == pytest.approx(expected, rel=1e-12)
    assert not step.update.any()


def test_padding_counts_for_nothing():
    torch.manual_seed(0)
    gate = torch.rand(2, 5, 6, dtype=torch.float64)
    valid = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    layer = make()
    whole, padded = run(layer, gate), run(layer, gate, valid)
    parts = run(layer, gate[:1]), run(layer, gate[1:, :2])
    assert padded.losses["polarisation"].item() == pytest.approx(sum(p.losses["polarisation"].item() for p in parts))
    assert padded.losses["polarisation"] < whole.losses["polarisation"]
    load = torch.cat((gate[0], gate[1, :2])).mean()
    assert padded.metrics["gate_load"].item() == pytest.approx(load.item(), rel=1e-12)


@pytest.mark.parametrize("progress, weight", [(0.0, 10.0), (0.25, 10**0.5), (0.5, 1.0), (1.0, 0.1)])
def test_the_weight_falls_by_equal_factors(progress, weight):
    layer = make()
    layer.update_statistics({}, progress)
    assert layer.weight().item() == pytest.approx(weight, rel=1e-6)
    step = run(layer, torch.full((1, 1, 6), 0.5, dtype=torch.float64))
    assert step.losses["polarisation"].item() == pytest.approx(weight, rel=1e-6)


def test_a_resumed_layer_goes_on_with_its_weight():
    layer, resumed = make(), make()
    layer.update_statistics({}, 0.3)
    resumed.load_state_dict(layer.state_dict())
    assert torch.equal(resumed.weight(), layer.weight()) and layer.weight() < 10.0


def test_without_weight_nothing_is_added_and_all_is_measured():
    step = run(make(start=0.0, end=0.0), torch.full((1, 3, 6), 0.5, dtype=torch.float64))
    assert step.losses == {}
    assert {name: value.item() for name, value in step.metrics.items()} == {
        "gate_entropy": 1.0, "gate_load": 0.5, "gate_variance": 0.0, "gate_deviation": 0.0, "undecided": 1.0,
        "weight": 0.0,
    }  # fmt: skip


def test_one_weight_of_zero_is_refused():
    with pytest.raises(RecipeError, match="both be 0 or both be positive"):
        make(start=0.0)


def test_entropy_and_decision_at_the_ends_and_the_middle():
    gate = torch.tensor([0.0, 0.11, 0.5, 1.0], dtype=torch.float64)
    assert entropy(gate).tolist() == pytest.approx([0.0, -0.11 * math.log2(0.11) - 0.89 * math.log2(0.89), 1.0, 0.0])
    assert undecided(gate).tolist() == pytest.approx([0.0, 0.22, 1.0, 0.0])


def test_gates_of_a_model_are_driven_to_decide():
    """Twenty steps on the loss alone: the gates of both layers of every block open or shut."""
    blocks = [{"use": "resolvent", "heads": 4}, {"use": "polarisation"},
              {"use": "fast-weights", "heads": 2}, {"use": "polarisation", "name": "second"}]
    model = build_component("model", "stack", {"width": 16, "depth": 1, "block": blocks})
    optimizer = torch.optim.Adam(model.parameters(), lr=0.06)
    ids = torch.randint(0, 256, (1, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for _ in range(20):
        output = model(ids)
        found.append([output.metrics[f"blocks.0.{name}/gate_entropy"].item() for name in ("polarisation", "second")])
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()
    assert set(output.losses) == {"blocks.0.polarisation/polarisation", "blocks.0.second/polarisation"}
    assert min(found[0]) > 0.7 and max(found[-1]) < 0.25
