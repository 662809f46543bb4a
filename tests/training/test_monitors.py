"""Verdicts of several monitors, and probes that fail."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from muse_core.component import Use
from muse_core.contracts import Action, Remedy, Verdict
from muse_core.errors import PluginError
from muse_core.model.precision import choose_precision
from muse_core.training.monitors import MonitorGroup

GOOD = {"total": 1.0, "loss": 1.0, "gradient_nonfinite": 0.0, "state_nonfinite": 0.0}
GO_ON = Verdict()


class Says:
    """A monitor with a prepared answer; an exception is raised."""

    def __init__(self, verdict: Verdict | Exception = GO_ON, probe: Any = None):
        self.verdict, self.answer = verdict, probe

    def measure(self, moment: str, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        return {"seen": torch.tensor(float(len(values)))}

    def judge(self, step: int, floats: Mapping[str, float]) -> Verdict:
        if isinstance(self.verdict, Exception):
            raise self.verdict
        return self.verdict

    def wants_probe(self, step: int, floats: Mapping[str, float]) -> bool:
        return self.answer is not None

    def probe(self, model: Any) -> dict[str, float]:
        torch.rand(7)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def board(**monitors: Says) -> MonitorGroup:
    def use(name: str) -> Use:
        return Use(kind="safety monitor", name=name, distribution="d", version="1", implementation="m:C", options=None)

    return MonitorGroup([(use(name), monitor) for name, monitor in monitors.items()])


def heard() -> tuple[list[str], Any]:
    lines: list[str] = []
    return lines, lines.append


def test_strongest_wins_and_those_that_agree_are_all_named() -> None:
    lines, warn = heard()
    verdict = board(
        a=Says(Verdict(Action.SKIP, "odd")),
        b=Says(Verdict(Action.ROLLBACK, "spike", onset=9)),
        c=Says(Verdict(Action.ROLLBACK, "worse", onset=7)),
    ).judge(10, GOOD, warn)
    assert verdict == Verdict(Action.ROLLBACK, "spike; worse", "b, c", 7) and not lines


def test_a_reason_to_go_on_is_a_warning() -> None:
    lines, warn = heard()
    assert board(a=Says(Verdict(reason="needles are lost"))).judge(1, GOOD, warn) == Verdict()
    assert lines == ["a: needles are lost"]


def test_core_skips_twice_and_rolls_back_at_the_third_non_finite_step_in_a_row() -> None:
    judged = board()
    bad = GOOD | {"total": math.nan}
    actions = [judged.judge(step, floats, print).action for step, floats in enumerate([bad, GOOD, bad, bad, bad])]
    assert actions == [Action.SKIP, Action.CONTINUE, Action.SKIP, Action.SKIP, Action.ROLLBACK]
    assert judged.judge(5, bad, print).onset == 2


def test_raising_judge_names_monitor_and_distribution() -> None:
    with pytest.raises(PluginError, match="monitor 'a' of d 1 raised in judge: KeyError"):
        board(a=Says(KeyError("x"))).judge(1, GOOD, print)


def test_probe_that_raises_is_reported_and_disturbs_nothing() -> None:
    lines, warn = heard()
    model = nn.Dropout().train()
    before = torch.get_rng_state()
    precision = choose_precision(torch.device("cpu"), "fp32")
    results = board(a=Says(probe=ZeroDivisionError("oh")), b=Says(probe={"x": math.nan})).probe(
        3, GOOD, model, precision, warn
    )
    assert math.isnan(results["b/x"]) and list(results) == ["b/x"]
    assert lines == ["the probe of a (d) failed: ZeroDivisionError: oh"]
    assert torch.equal(torch.get_rng_state(), before) and model.training


def test_measures_carry_the_monitors_name() -> None:
    assert board(a=Says()).measure("gradients", {"w": 1, "v": 2})["a/seen"].item() == 2.0


@pytest.mark.parametrize(
    "method, returned, said",
    [
        ("measure", None, "returned NoneType from measure where a dict of scalar tensors is due"),
        ("measure", {"norm": 0.5}, "returned float from measure as 'norm' where a real scalar tensor is due"),
        ("measure", {"norm": torch.ones(3)}, "returned a tensor of shape (3,) from measure as 'norm' where"),
        ("judge", None, "returned NoneType from judge where a Verdict is due"),
        ("judge", Action.HALT, "returned Action from judge where a Verdict is due"),
        ("judge", Verdict("halt", "x"), "a Verdict whose action is 'halt' where an Action, such as Action.HALT, is"),
        ("judge", Verdict(2, "x"), "whose action is 2 where an Action"),
        ("judge", Verdict(Action.SKIP, None), "whose reason is None where a text is due"),
        ("judge", Verdict(Action.ROLLBACK, "x", "", "3"), "whose onset is '3' where a step or None is due"),
        ("judge", Verdict(Action.ROLLBACK, "x", remedy={"rate": 0.5}), "remedy is {'rate': 0.5} where a Remedy is"),
        ("judge", Verdict(Action.ROLLBACK, "x", remedy=Remedy(rate="half")), "remedy.rate is 'half' where a number is"),
        ("state_dict", {"best": math.nan}, "its state_dict cannot be kept in a checkpoint: best: nan has no JSON form"),
        ("state_dict", {"seen": torch.ones(2)}, "its state_dict cannot be kept in a checkpoint: seen: Tensor has no"),
        ("state_dict", (1, 2), "its state_dict cannot be kept in a checkpoint: value: tuple has no JSON form"),
    ],
)
def test_a_wrong_answer_names_the_monitor_and_what_is_due(method: str, returned: Any, said: str) -> None:
    monitor = Says()
    setattr(monitor, method, lambda *arguments: returned)
    group = board(a=Says(), odd=monitor)
    with pytest.raises(PluginError) as caught:
        group.measure("gradients", {})
        group.judge(0, GOOD, heard()[1])
        group.state_dict()
    assert str(caught.value).startswith("safety monitor 'odd' of d 1") and said in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("method", ["state_dict", "load_state_dict"])
def test_a_state_that_raises_names_the_monitor(method: str) -> None:
    def fail(*arguments: Any) -> None:
        raise KeyError("gone")

    monitor = Says()
    setattr(monitor, method, fail)
    group = board(odd=monitor)
    with pytest.raises(PluginError, match=f"monitor 'odd' of d 1 raised in {method}: KeyError: 'gone'"):
        group.load_state_dict({"finite": 0, "odd": {}})
        group.state_dict()


@pytest.mark.parametrize("answer", [SystemExit(0), {"recall": "high"}, {"recall": torch.ones(2)}, 3])
def test_a_probe_that_exits_or_answers_with_no_numbers_is_reported_and_passed_over(answer: Any) -> None:
    class Odd(Says):
        def probe(self, model: Any) -> Any:
            if isinstance(answer, SystemExit):
                raise answer
            return answer

    said, warn = heard()
    group = board(odd=Odd(probe=answer), good=Says(probe={"recall": 0.5}))
    precision = choose_precision(torch.device("cpu"), "fp32")
    found = group.probe(5, GOOD, nn.Linear(2, 2), precision, warn)
    assert found == {"good/recall": 0.5}
    assert len(said) == 1 and said[0].startswith("the probe of odd (d) failed: ")
