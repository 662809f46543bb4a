"""The verdict on gates: by the loss that they are worth, on a model whose gates are known to matter or not."""

import pytest
import torch
from muse_gate_ablation.ablation import Worth, worth_of
from muse_gate_ablation.options import GateAblationOptions
from torch import nn

from muse_core.contracts import Action, ModelOutput
from muse_core.errors import DataError, RecipeError
from muse_core.testing import build_component
from muse_core.training.monitor_context import MonitorContext


class Switch(nn.Module):
    """Text alternates between tokens 0 and 1. The gate opens at token 0 and says that 1 is next; ``strength`` is how
    loud, 0 makes the gate idle and a negative one harmful."""

    def __init__(self, strength):
        super().__init__()
        self.switch = nn.Module()
        self.switch.gate = nn.Linear(2, 1, bias=False)
        self.switch.gate.weight.data = torch.tensor([[8.0, -8.0]])
        self.strength = strength

    def forward(self, ids, state, tokens):
        gate = self.switch.gate(nn.functional.one_hot(ids, 2).float()).sigmoid()
        return ModelOutput(self.strength * torch.cat((-gate, gate - 1), -1), None, {}, {})

    def logits(self, hidden):
        return hidden


TEXT = (torch.arange(4 * 17).reshape(4, 17) + torch.arange(4)[:, None] * 17 % 2) % 2


def worth(strength):
    model = Switch(strength)
    return worth_of(model, {"switch.gate": model.switch.gate}, TEXT, rows=2)["switch.gate"]


def test_a_gate_that_decides_the_next_token_is_useful_and_one_that_says_nothing_idle():
    useful, idle, harmful = worth(3.0), worth(0.0), worth(-3.0)
    # With the gate in the middle both tokens are equally likely: ln 2, against softplus(−3) with it.
    assert useful.ablation == pytest.approx(0.6931 - 0.0489, abs=2e-3)
    assert idle.ablation == 0.0 and idle.error == 0.0
    assert harmful.ablation < -2.0
    assert [one.verdict(0.001) for one in (useful, idle, harmful)] == ["useful", "idle", "harmful"]
    assert useful.load == pytest.approx(0.5, abs=1e-6) and useful.entropy < 0.01


@pytest.mark.parametrize(
    "ablation, error, verdict",
    [(0.01, 0.001, "useful"), (0.01, 0.005, "undecided"), (0.0005, 0.0001, "idle"), (0.0005, 0.001, "undecided"),
     (-0.01, 0.001, "harmful"), (-0.01, 0.01, "undecided")],
)  # fmt: skip
def test_a_verdict_leaves_two_standard_errors(ablation, error, verdict):
    assert Worth(ablation, error, 0.5, 0.5).verdict(0.001) == verdict


def make(text=TEXT, **options):
    from muse_gate_ablation.monitor import GateAblation

    ids = text.flatten().numpy()
    context = MonitorContext(name="gate-ablation", seed=0, sequence_length=8, batch_size=2, tokenizer=None,
                             validation=lambda: ids)
    return GateAblation(GateAblationOptions(**options), context)


@pytest.mark.parametrize("failure, action", [("warn", Action.CONTINUE), ("halt", Action.HALT)])
def test_idle_gates_are_named_once_they_may_be_judged(failure, action):
    monitor = make(tokens=64, after=100, failure=failure)
    monitor.judge(99, {})
    found = monitor.probe(Switch(0.0))
    assert found["idle"] == 1.0 and found["switch.gate/ablation"] == 0.0
    assert not monitor.judge(100, {}).reason
    monitor.probe(Switch(0.0))
    verdict = monitor.judge(101, {})
    assert verdict.action is action and verdict.reason.startswith("idle gate switch.gate (+0.0000 ± 0.0000")
    assert not monitor.judge(102, {}).reason


def test_useful_gates_are_no_failure():
    monitor = make(tokens=64, after=0, failure="halt")
    assert monitor.probe(Switch(3.0))["useful"] == 1.0
    assert monitor.judge(1, {}).action is Action.CONTINUE


def test_the_model_is_as_before():
    model = Switch(3.0)
    before = worth(3.0)
    make(tokens=64).probe(model)
    assert not model.switch.gate._forward_hooks
    assert worth_of(model, {"switch.gate": model.switch.gate}, TEXT, rows=2)["switch.gate"] == before


def test_no_gate_and_no_text_are_said():
    with pytest.raises(RecipeError, match="no module is named like '\\*.door'"):
        make(match="*.door").probe(Switch(1.0))
    with pytest.raises(DataError, match="two rows of 8 held-out tokens"):
        make(text=TEXT[:1, :9]).probe(Switch(1.0))


def test_every_gate_of_a_real_model_is_judged():
    monitor = build_component("safety monitor", "gate-ablation", {"tokens": 128, "after": 0})
    blocks = [{"use": "resolvent", "heads": 4}, {"use": "fast-weights", "heads": 2}]
    model = build_component("model", "stack", {"width": 16, "depth": 2, "block": blocks}).eval()
    found = monitor.probe(model)
    gates = [f"blocks.{block}.{layer}.gate" for block in (0, 1) for layer in ("resolvent", "fast-weights")]
    assert {name for name in found if name.endswith("/ablation")} == {f"{gate}/ablation" for gate in gates}
    assert all(0.5 < found[f"{gate}/entropy"] < 1.0 and 0.3 < found[f"{gate}/load"] < 0.7 for gate in gates)
    assert sum(found[one] for one in ("useful", "idle", "harmful", "undecided")) == 4
