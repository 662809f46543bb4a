"""Gates that stand still are told of, once, and others are not."""

import pytest

from muse_core.contracts import Action
from muse_core.testing import build_component

GATE = "blocks.0.mag"


def judged(variances, deviations=(), **options):
    """Verdicts with a reason over the steps of a run."""
    monitor = build_component("safety monitor", "gate-collapse", options)
    found = []
    for step, variance in enumerate(variances):
        floats = {f"{GATE}/gate_variance": variance, "loss": 2.0}
        if step < len(deviations):
            floats[f"{GATE}/gate_deviation"] = deviations[step]
        verdict = monitor.judge(step, floats)
        if verdict.reason:
            found.append((step, verdict))
    return found


def test_a_gate_whose_variance_grows_in_time_is_let_be():
    assert not judged([0.04] * 20 + [0.0601] + [0.05] * 60, by=50, growth=1.5)


def test_a_gate_whose_variance_does_not_grow_is_told_of_once():
    ((step, verdict),) = judged([0.04, 0.0599] + [0.05] * 80, by=50, growth=1.5)
    assert step == 49 and verdict.action is Action.CONTINUE
    assert "blocks.0.mag has grown to 1.50 times its first value within 50 steps" in verdict.reason


@pytest.mark.parametrize("at", [0, 2])
def test_a_step_that_is_not_finite_says_nothing_of_a_gate(at):
    variances = [0.04, 0.0599] + [0.05] * 80
    variances[at:at] = [float("nan")]
    ((_, verdict),) = judged(variances, by=50, growth=1.5)
    assert "has grown to 1.50 times its first value" in verdict.reason


def test_a_gate_that_does_not_vary_is_told_of_after_its_time():
    deviations = [0.2] * 5 + [0.001] * 20
    ((step, verdict),) = judged([0.04] * 25, deviations, after=10, by=1000)
    assert step == 10 and "standard deviation of 0.001" in verdict.reason
    assert not judged([0.04] * 25, [0.001] * 10 + [0.011] * 15, after=10, by=1000)


def test_it_may_end_the_run():
    ((_, verdict),) = judged([0.04] * 12, [0.0] * 12, after=10, failure="halt")
    assert verdict.action is Action.HALT


def test_a_model_without_gates_is_told_that_there_is_nothing_to_judge():
    monitor = build_component("safety monitor", "gate-collapse", {"after": 3})
    reasons = [monitor.judge(step, {"loss": 1.0}).reason for step in range(6)]
    assert [bool(reason) for reason in reasons] == [False, False, True, False, False, False]


@pytest.mark.parametrize("deviation, verdicts", [(0.5, 1), (0.0, 0)])
def test_the_numbers_of_a_layer_are_read(deviation, verdicts):
    """Those that ``polarisation`` reports, of a real layer."""
    import torch

    from muse_core.contracts import Tokens

    layer = build_component("layer", "polarisation", {}, signals={"gate": (6,)})
    gate = torch.rand(2, 5, 6)
    metrics = layer(torch.randn(2, 5, 16), None, {"gate": gate}, Tokens(torch.arange(5).expand(2, -1))).metrics
    assert metrics["gate_variance"].item() == pytest.approx(gate.var(unbiased=False).item(), rel=1e-5)
    floats = {f"{GATE}/{name}": value.item() for name, value in metrics.items()}
    monitor = build_component("safety monitor", "gate-collapse", {"after": 0, "deviation": deviation})
    assert bool(monitor.judge(0, floats).reason) == bool(verdicts)
