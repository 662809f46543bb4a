"""Gradient safety: what is counted, what is replaced, what is decided, and that it costs no synchronisation."""

import math

import pytest
import torch
from muse_gradient_safety.monitor import GradientSafety
from muse_gradient_safety.options import GradientSafetyOptions

from muse_core.contracts import Action
from muse_core.training.monitor_context import MonitorContext
from muse_core.training.optimizers import norms

NAN, INF = math.nan, math.inf


def make_monitor(**options):
    context = MonitorContext(
        name="safety", seed=0, sequence_length=8, batch_size=1, tokenizer=None, validation=lambda: None
    )
    return GradientSafety(GradientSafetyOptions(**options), context)


def step(monitor, gradients, number=0):
    """Measure and judge as the loop does: the numbers pass through floats under the monitor's name."""
    measured = monitor.measure("gradients", gradients)
    measured |= monitor.measure("norms", {"names": tuple(gradients), "norms": norms(list(gradients.values()))})
    return measured, monitor.judge(number, {f"safety/{name}": float(value) for name, value in measured.items()})


def damaged():
    return {
        "blocks.0.weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        "blocks.1.weight": torch.tensor([NAN, 5.0, INF, -INF]),
        "blocks.2.weight": torch.tensor([-6.0, NAN]),
    }


def healthy():
    return {"blocks.0.weight": torch.tensor([1.0, -2.0]), "blocks.1.weight": torch.tensor(3.0)}


def test_replace_zeroes_the_damaged_elements_and_keeps_the_rest():
    gradients = damaged()
    measured, verdict = step(make_monitor(policy="replace"), gradients)
    assert gradients["blocks.0.weight"].tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert gradients["blocks.1.weight"].tolist() == [0.0, 5.0, 0.0, 0.0]
    assert gradients["blocks.2.weight"].tolist() == [-6.0, 0.0]
    assert (measured["tensors"], measured["replaced"]) == (2, 4)
    assert verdict.action is Action.CONTINUE
    assert verdict.reason == "non-finite gradient of blocks.1.weight and 1 more, 4 elements zeroed"


def test_of_two_processes_with_parts_of_the_gradients_the_damaged_one_names_the_tensor():
    """A step's numbers are combined over processes: by the least where they end in _min, else by the largest."""
    monitor = make_monitor(policy="replace")
    whole, _ = step(monitor, healthy())
    broken, _ = step(monitor, {**healthy(), "blocks.1.weight": torch.tensor(NAN)})
    together = {
        f"safety/{name}": float((min if name.endswith("_min") else max)(value, whole[name]))
        for name, value in broken.items()
    }
    assert "non-finite gradient of blocks.1.weight, 1 elements" in monitor.judge(0, together).reason


@pytest.mark.parametrize("policy, action", [("skip", Action.SKIP), ("halt", Action.HALT)])
def test_skip_and_halt_leave_the_gradients_alone(policy, action):
    gradients, before = damaged(), damaged()
    measured, verdict = step(make_monitor(policy=policy), gradients, 17)
    for name, gradient in gradients.items():
        assert torch.equal(gradient, before[name]) or torch.equal(gradient.isnan(), before[name].isnan())
    assert verdict.action is action
    assert "blocks.1.weight" in verdict.reason
    assert verdict.onset == 17
    assert "replaced" not in measured


@pytest.mark.parametrize("policy", ["replace", "skip", "halt"])
def test_finite_gradients_pass_untouched(policy):
    gradients = healthy()
    measured, verdict = step(make_monitor(policy=policy), gradients)
    assert gradients["blocks.0.weight"].tolist() == [1.0, -2.0]
    assert measured["tensors"] == 0
    assert verdict.action is Action.CONTINUE and not verdict.reason


@pytest.mark.parametrize("damage", [complex(NAN, 1), complex(1, INF), complex(3e38, 3e38)])
def test_a_complex_element_is_one_element(damage):
    """Its modulus decides, and both parts go: the last one has finite parts and an infinite modulus."""
    gradient = torch.tensor([1 + 2j, damage, 3 - 1j], dtype=torch.complex64)
    measured, _ = step(make_monitor(policy="replace"), {"weight": gradient})
    assert gradient.tolist() == [1 + 2j, 0, 3 - 1j]
    assert (measured["tensors"], measured["replaced"]) == (1, 1)


def test_a_huge_finite_gradient_is_not_damage():
    """The square of 1e25 overflows; the gradient does not."""
    largest = ((1e25, torch.float32), (3e38, torch.bfloat16), (1e300, torch.float64))
    for value, dtype in largest:
        for policy in ("replace", "halt"):
            gradients = {"weight": torch.full((4,), value, dtype=dtype), "other": torch.ones(2)}
            measured, verdict = step(make_monitor(policy=policy), gradients)
            assert measured["tensors"] == 0 and verdict.action is Action.CONTINUE
            assert gradients["weight"][0].item() == pytest.approx(value, rel=0.01)


def test_the_parameter_with_the_largest_gradient_is_known():
    measured, _ = step(make_monitor(), {"a": torch.ones(4), "b": torch.tensor([3.0, 4.0]), "c": torch.ones(2)})
    assert (measured["largest_max"].item(), measured["largest_at_max"].item()) == (5.0, 1)


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_three_in_a_row_roll_back_to_before_the_first(policy):
    monitor = make_monitor(policy=policy)
    mild = Action.CONTINUE if policy == "replace" else Action.SKIP
    pattern = [damaged, damaged, healthy, damaged, damaged, damaged]
    verdicts = [step(monitor, gradients(), number)[1] for number, gradients in enumerate(pattern)]
    assert [verdict.action for verdict in verdicts] == [mild, mild, Action.CONTINUE, mild, mild, Action.ROLLBACK]
    assert verdicts[-1].onset == 3


def test_the_streak_survives_a_checkpoint():
    monitor, resumed = make_monitor(), make_monitor()
    step(monitor, damaged(), 0)
    step(monitor, damaged(), 1)
    resumed.load_state_dict(monitor.state_dict())
    assert step(resumed, damaged(), 2)[1].action is Action.ROLLBACK


def test_a_step_without_gradients_and_other_moments_are_nothing():
    monitor = make_monitor(policy="halt")
    assert step(monitor, {})[1].action is Action.CONTINUE
    assert monitor.measure("another moment", {"x": torch.tensor(NAN)}) == {}


@pytest.mark.parametrize("policy", ["replace", "skip"])
def test_measuring_reads_nothing_on_the_host(policy):
    """Meta tensors have no values: any read raises."""
    gradients = {"a": torch.empty(3, 4, device="meta"), "b": torch.empty(5, device="meta")}
    monitor = make_monitor(policy=policy)
    measured = monitor.measure("gradients", gradients)
    measured |= monitor.measure("norms", {"names": ("a", "b"), "norms": norms(list(gradients.values()))})
    numbers = {"tensors", "first_min", "largest_max", "largest_at_max"}
    assert set(measured) == numbers | ({"replaced"} if policy == "replace" else set())
    assert all(value.shape == () and value.device.type == "meta" for value in measured.values())
