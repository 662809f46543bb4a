"""What a verdict asks of a rollback is done, and done again by a run that was killed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from muse_core import fault_injection
from muse_core.component import Use
from muse_core.contracts import Action, Remedy, Verdict
from muse_core.selftest.promises.runs import StopAfter, events, loop_of, recipe_table
from muse_core.storage.checkpoint import Checkpoints
from muse_core.training.monitors import MonitorGroup, strongest_remedy
from muse_core.training.objectives import NextToken
from muse_core.training.train_state import WINDOW, Incident, Incidents

GO_ON = Verdict()


class Asks:
    """A monitor that asks once, at one step, and doubts some checkpoints."""

    def __init__(self, step: int, remedy: Remedy, doubtful: tuple[int, ...] = ()):
        self.step, self.remedy, self.doubtful = step, remedy, doubtful
        self.rollbacks: list[float] = []

    def measure(self, moment: str, values: Any) -> dict[str, Any]:
        return {}

    def judge(self, step: int, floats: Any) -> Verdict:
        self.rollbacks.append(floats["rollbacks"])
        if step == self.step and not floats["rollbacks"]:
            return Verdict(Action.ROLLBACK, "as asked", onset=step - 1, remedy=self.remedy)
        return GO_ON

    def wants_probe(self, step: int, floats: Any) -> bool:
        return False

    def probe(self, model: Any) -> dict[str, float]:
        return {}

    def veto_certification(self, step: int) -> str | None:
        return "doubtful" if step in self.doubtful else None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


USE = Use(kind="safety monitor", name="asks", distribution="d", version="1", implementation="", options=None)


@contextmanager
def asked(folder: Path, monitor: Asks, steps: int = 1000) -> Iterator[Any]:
    recipe = recipe_table(folder, train={"steps": 24}, checkpoint={"every": 4})
    with loop_of(folder / "run", recipe, StopAfter(steps), MonitorGroup([(USE, monitor)])) as loop:
        yield loop


def incident_of(folder: Path, remedy: Remedy, doubtful: tuple[int, ...] = ()) -> dict[str, Any]:
    with asked(folder, Asks(14, remedy, doubtful), steps=18) as loop:
        loop.run()
    (incident,) = events(folder / "run", "incident")
    return incident


@pytest.mark.parametrize(
    "remedy, doubtful, target",
    [
        (Remedy(), (), 12),
        (Remedy(margin=2), (), 8),
        (Remedy(older=1), (), 8),
        (Remedy(margin=2, older=1), (), 4),
        (Remedy(), (12, 8), 4),
        (Remedy(margin=100), (), 0),
        (Remedy(older=100), (), 0),
    ],
)
def test_target(tmp_path: Path, remedy: Remedy, doubtful: tuple[int, ...], target: int) -> None:
    assert incident_of(tmp_path, remedy, doubtful)["target"] == target


def test_doubted_checkpoints_are_not_certified_and_say_why(tmp_path: Path) -> None:
    with asked(tmp_path, Asks(99, Remedy(), (8,))) as loop:
        loop.run()
    certified = {one.step: one.certified for one in Checkpoints(tmp_path / "run").generations()}
    assert certified[8] is False and certified[12] is True
    assert events(tmp_path / "run", "uncertified")[0]["reason"] == "asks: doubtful"


@pytest.mark.parametrize("window, data", [(1, [13, 15]), (4, [12, 18]), (16, [12, 30])])
def test_window_of_data_grows_on_both_sides_but_not_before_the_target(
    tmp_path: Path, window: int, data: list[int]
) -> None:
    assert incident_of(tmp_path, Remedy(window=window))["data"] == data


def test_rate_and_fresh_moments_hold_from_then_on_and_after_a_kill(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(incident: Incident) -> Incident:
        raise Killed

    remedy = Remedy(margin=2, rate=0.25, reset_moments=True)  # from 14 to 8, past the checkpoint of step 12
    with asked(tmp_path, Asks(14, remedy)) as loop, fault_injection.installed({"rollback": die}), pytest.raises(Killed):
        loop.run()
    monitor = Asks(14, remedy)
    with asked(tmp_path, monitor, steps=1) as loop:
        assert loop.state.at.step == 8 and loop.incidents.rate == 0.25
        assert not any(part.state for part in loop.state.optimizers.parts)
        peak = loop.state.optimizers.peaks[0][0]
        loop.run()
        assert loop.state.optimizers.parts[0].param_groups[0]["lr"] < 0.25 * peak
        assert monitor.rollbacks == [1.0]
    with asked(tmp_path, monitor) as loop:
        assert loop.state.at.step == 9 and any(part.state for part in loop.state.optimizers.parts)
    assert len(events(tmp_path / "run", "incident")) == 1


def test_a_step_is_saved_once_after_the_folder_was_checked_and_the_records_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint without the rows before it would resume behind what is known of the run."""
    with asked(tmp_path, Asks(99, Remedy())) as loop:
        keeper, done = loop.checkpoints, []
        monkeypatch.setattr(keeper, "check", lambda: done.append("checked"))
        monkeypatch.setattr(keeper.records, "sync", lambda: done.append("synced"))
        monkeypatch.setattr(keeper.checkpoints, "commit", lambda *_, **more: done.append(more["certified"]))
        keeper.commit()
        assert done == [], "the start is saved already"
        for certified, weight in ((True, 1.0), (False, float("inf"))):
            done.clear()
            loop.state.at.step += 1
            next(loop.state.model.parameters()).data.fill_(weight)
            keeper.commit()
            keeper.commit()
            assert done == ["checked", "synced", certified]


def test_a_rollback_is_on_disk_before_it_acts_and_leaves_nothing_of_what_it_undoes(tmp_path: Path) -> None:
    """The steps from 8 on are done again, with a checkpoint of step 12 that is theirs in place of the one before."""
    seen: dict[str, Any] = {}

    def abandoned() -> list[int]:
        return [one.step for one in Checkpoints(tmp_path / "run").generations() if one.abandoned]

    def decided(incident: Incident) -> Incident:
        seen["decided"] = len(events(tmp_path / "run", "incident")), abandoned()
        return incident

    def restored(state: Any) -> Any:
        left = [name for name, parameter in state.optimizers.names.items() if parameter.grad is not None]
        seen["restored"] = left, state.optimizers.state_dict(), abandoned()
        return state

    plan = {"rollback": decided, "restored": restored}
    with asked(tmp_path, Asks(14, Remedy(margin=2, reset_moments=True))) as loop, fault_injection.installed(plan):
        loop.run()
    assert seen == {"decided": (1, []), "restored": ([], {}, [12])}
    alive = [one.step for one in Checkpoints(tmp_path / "run").generations() if not one.abandoned]
    assert alive == [24, 20, 16, 12, 8]


def test_what_an_objective_draws_as_it_is_loaded_leaves_the_random_state_that_was_saved(tmp_path: Path) -> None:
    class Draws(NextToken):
        def tensors(self) -> dict[str, torch.Tensor]:
            return {"x": torch.zeros(1)}

        def load_tensors(self, tensors: Any, device: Any) -> None:
            torch.rand(3)

    with asked(tmp_path, Asks(99, Remedy())) as loop:
        loop.state.objective = Draws()
        snapshot = loop.state.snapshot()
        due = torch.rand(2)
        loop.state.load(snapshot)
        assert torch.equal(torch.rand(2), due)


def test_strongest_of_each_part_wins() -> None:
    merged = strongest_remedy([Remedy(margin=3, rate=0.5), Remedy(older=1, window=4), Remedy(reset_moments=True)])
    assert merged == Remedy(margin=3, older=1, window=4, rate=0.5, reset_moments=True)


def test_rollbacks_are_counted_within_a_window() -> None:
    incidents = Incidents()
    for step in (10, 20):
        incidents.known.append(
            Incident(stage=0, step=step, onset=step, target=0, data=(step, step + 1), generation=1, through=2, rate=0.5)
        )
    assert [incidents.recent(step) for step in (20, WINDOW + 9, WINDOW + 10, WINDOW + 20)] == [2, 2, 1, 0]
    assert incidents.rate == 0.25


def test_rollbacks_of_other_stages_do_not_count_and_the_last_to_a_generation_decides() -> None:
    made = {"event": "incident", "step": 5, "onset": 5, "target": 0, "data": [5, 6], "generation": 2, "through": 3}
    rows = [made | {"stage": stage, "reset_moments": fresh} for stage, fresh in ((0, True), (1, False), (1, True))]
    assert [one.reset_moments for one in Incidents(1, [{"event": "skip", "stage": 1}, *rows]).known] == [False, True]
    assert Incidents(1, rows).resets(2) and not Incidents(1, rows[:2]).resets(2) and not Incidents(1, rows).resets(9)
