"""The probe in a run: when it runs, what it costs, what a failure leads to."""

import math

import pytest
import torch
from muse_niah_probe import monitor as module
from muse_niah_probe.recall import Recall

from muse_core.contracts import Action
from muse_core.testing import build_component
from muse_core.training import monitors as budgeted_probe


class Clock:
    """A wall clock that a test winds."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budgeted_probe, "time", clock)
    return clock


def make(monkeypatch, answer=None, clock=None, cost=0.0, **options):
    """A monitor whose model answers ``answer`` after ``cost`` seconds of the clock."""

    def recall(model, needles, *, segment):
        if clock is not None:
            clock.now += cost
        return answer or Recall(0.5, -1.0, 2.0, 1.5, 1.5)

    monkeypatch.setattr(module, "recall", recall)
    return build_component("safety monitor", "niah-probe", options)


def train(monitor, clock, steps, seconds):
    """Steps of a run that probes whenever the monitor wants to; returns the steps that probed."""
    probed = []
    for step in range(1, steps + 1):
        clock.now += seconds
        floats = {f"{monitor.name}/{name}": float(v) for name, v in monitor.measure("step", {}).items()}
        monitor.judge(step - 1, floats)
        if monitor.wants_probe(step, floats):
            monitor.probe(torch.nn.Linear(1, 1))
            probed.append(step)
    return probed


def test_cheap_probes_run_whenever_they_are_due(monkeypatch, clock):
    monitor = make(monkeypatch, clock=clock, cost=0.001, every=10, budget=1.0)
    assert train(monitor, clock, 50, 1.0) == [10, 20, 30, 40, 50]


def test_probes_never_take_more_than_the_budget(monkeypatch, clock):
    """A probe as long as two steps, at 1 %, waits until 200 steps have passed for each, and 100 more."""
    monitor = make(monkeypatch, clock=clock, cost=2.0, every=10, budget=0.01)
    probed = train(monitor, clock, 1000, 1.0)
    assert 3 <= len(probed) <= 5
    assert 2.0 * len(probed) <= 0.01 * clock.now * 1.01
    assert monitor.probe_budget.spent == pytest.approx(2.0 * len(probed))


def test_the_first_probe_is_estimated_by_the_tokens_it_reads(monkeypatch, clock):
    """8 rows of 8 + 80 + 448 tokens without backward against 4 × 64 trained in 1 s: 0.4 × 16.75 s, so at 10 % nothing
    runs before 67 steps; two rows are still six calls."""
    monitor = make(monkeypatch, clock=clock, cost=0.0, every=1, budget=0.1)
    assert train(monitor, clock, 80, 1.0)[0] == 67
    assert make(monkeypatch, needles=2).passes == 6


def test_the_clock_is_not_read_where_a_recorded_step_would_keep_it(monkeypatch, clock):
    monitor = make(monkeypatch, clock=clock, cost=1.0, every=1, budget=0.01)
    assert monitor.measure("gradients", {}) == {} == monitor.measure("norms", {"names": (), "norms": torch.zeros(0)})
    assert monitor.probe_budget.share == 0.0 and "share_max" in monitor.measure("step", {})


def test_after_a_long_probe_the_next_ones_are_planned_longer(monkeypatch, clock):
    monitor = make(monkeypatch, clock=clock, cost=1.0, every=1, budget=0.01)
    clock.now = 1.0
    monitor.measure("step", {})
    for cost in (2.0, 5.0, 1.0):
        with monitor.probe_budget.spending():
            clock.now += cost
    clock.now = 1001.0
    assert monitor.measure("step", {})["share_max"].item() == pytest.approx((8.0 + 1.5 * 5.0) / 1000.0)


def test_what_the_first_probe_compiles_is_spent_but_not_planned_again(monkeypatch, clock):
    monitor = make(monkeypatch, clock=clock, cost=1.0, every=1, budget=0.01)
    clock.now = 1.0
    monitor.measure("step", {})
    planned = []
    for cost in (10.0, 1.0):
        with monitor.probe_budget.spending():
            clock.now += cost
        planned.append(monitor.probe_budget.share_with_next(1.0) * (clock.now - 1.0) - monitor.probe_budget.spent)
    assert planned == pytest.approx([15.0, 1.5])


def test_the_share_is_measured_over_whole_intervals(monkeypatch, clock):
    """Every probe takes 1 s of the 20 s from the end of the one before to its own end."""
    monitor = make(monkeypatch, clock=clock, cost=1.0, every=19, budget=1.0)
    shares = []
    for step in range(1, 77):
        clock.now += 1.0
        monitor.measure("step", {})
        if step % 19 == 0:
            shares.append(monitor.probe(torch.nn.Linear(1, 1))["share"])
    # The clock starts at the end of the first step.
    assert shares == pytest.approx([n / (20 * n - 1) for n in range(1, 5)])


@pytest.mark.parametrize("failure, action", [("warn", Action.CONTINUE), ("halt", Action.HALT)])
@pytest.mark.parametrize(
    "answer, words",
    [(Recall(0.0, -9.0, 0.5, 0.5, 0.01), "less than 0.1"), (Recall(0.0, math.nan, 1.0, 1.0, 1.0), "log_probability")],
)
def test_a_failed_probe_warns_or_halts_with_its_reason_once(monkeypatch, answer, words, failure, action):
    monitor = make(monkeypatch, answer, minimum_margin=0.1, failure=failure)
    found = monitor.probe(torch.nn.Linear(1, 1))
    assert found["failed"] == 1.0
    verdict = monitor.judge(1, {})
    assert verdict.action is action
    assert words in verdict.reason
    assert monitor.judge(2, {}).action is Action.CONTINUE and not monitor.judge(2, {}).reason


def test_a_margin_is_judged_only_when_asked_and_only_after_its_step(monkeypatch):
    weak = Recall(0.0, -9.0, 0.0, 0.0, 0.0)
    assert make(monkeypatch, weak, failure="halt").probe(torch.nn.Linear(1, 1))["failed"] == 0.0
    late = make(monkeypatch, weak, minimum_margin=0.1, after=100)
    late.judge(50, {})
    assert late.probe(torch.nn.Linear(1, 1))["failed"] == 0.0
    late.judge(100, {})
    assert late.probe(torch.nn.Linear(1, 1))["failed"] == 1.0


def leaky(kernel):
    def forgetting(query, key, value, log_decay, rate, **options):
        return kernel(query, key, value, log_decay - 0.01, rate, **options)

    return forgetting


def test_a_memory_kernel_off_theory_is_a_failure(monkeypatch):
    assert make(monkeypatch).probe(torch.nn.Linear(1, 1))["failed"] == 0.0
    monitor = make(monkeypatch)
    monitor.fast_weights = leaky(monitor.fast_weights)
    assert monitor.probe(torch.nn.Linear(1, 1))["failed"] == 1.0
    assert "where theory says 0.707" in monitor.judge(0, {}).reason


def test_the_kernel_is_tested_once_after_the_first_step(monkeypatch):
    """A kernel that is off halts at step 1, whenever the first probe is due; nothing is planned by what it took."""
    monitor = make(monkeypatch, failure="halt", every=1000)
    monitor.fast_weights = leaky(monitor.fast_weights)
    assert not monitor.wants_probe(1, {"niah-probe/share_max": 9.0})
    held, spent = monitor.held, monitor.probe_budget.spent
    assert spent > 0 and monitor.probe_budget.largest is None
    verdict = monitor.judge(1, {})
    assert verdict.action is Action.HALT and "where theory says 0.707" in verdict.reason
    assert not monitor.wants_probe(2, {"niah-probe/share_max": 9.0})
    assert monitor.held is held and monitor.probe_budget.spent == spent


def test_a_real_model_is_probed_from_end_to_end():
    monitor = build_component("safety monitor", "niah-probe", {"needles": 3})
    model = build_component("model", "stack", {"width": 16, "depth": 1, "block": [{"use": "fast-weights", "heads": 2}]})
    found = monitor.probe(model.eval())
    assert set(found) == {
        "recall", "log_probability", "over_emptied", "over_shuffled", "over_other_key", "chance", "distance",
        "capacity", "capacity_expected", "seconds", "share", "failed",
    }  # fmt: skip
    assert 80 <= found["distance"] <= 300
    assert all(math.isfinite(value) for value in found.values())
    assert found["over_emptied"] != 0.0 and found["over_shuffled"] != 0.0
