"""Suspicion, decision and false alarms, on losses without a model."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from muse_rollback.canary import Canary
from muse_rollback.ladder import remedy
from muse_rollback.machine import Machine
from muse_rollback.noise import Noise, measured_deviation, recorded
from muse_rollback.options import PerplexitySpikeOptions, RollbackOptions
from muse_rollback.screen import Screen
from muse_rollback.simulate import delays, five_percent, healthy, main, two_stages

from muse_core.contracts import Action, Remedy
from muse_core.testing import build_component

OPTIONS = RollbackOptions()


def quiet(steps: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A run that learns nothing any more: losses about 2, a canary at 2."""
    random = np.random.default_rng(seed)
    return 2 + 0.05 * random.standard_normal(steps), 2 + 0.003 * random.standard_normal(steps)


def screened(losses) -> list[int]:
    screen = Screen(OPTIONS)
    return [step for step, loss in enumerate(losses) if screen.look(step, float(loss)) is not None]


def test_one_far_loss_and_a_small_lasting_rise_are_suspect_and_noise_is_not() -> None:
    loss, _ = quiet(600)
    assert screened(loss) == []
    loss[400] += 1.0
    assert screened(loss) == [400]
    loss, _ = quiet(600)
    loss[400:420] += 0.15
    assert 402 <= screened(loss)[0] <= 408


def test_suspicion_names_the_step_before_the_first_high_loss() -> None:
    loss, _ = quiet(500)
    loss[400:] += 0.2
    screen = Screen(OPTIONS)
    found = [screen.look(step, float(value)) for step, value in enumerate(loss)]
    onset = next(one for one in found if one)[1]
    assert 394 <= onset <= 399


@pytest.mark.parametrize("start", [400, 411])
def test_the_update_before_the_first_high_loss_is_held_responsible(start: int) -> None:
    """The update of step n shows in the loss of step n + 1 for the first time."""
    loss = 2 + 0.001 * np.random.default_rng(0).standard_normal(500)
    for rise in (1.0, 0.15):
        risen = loss.copy()
        risen[start:] += rise
        screen = Screen(OPTIONS)
        onset = next(found[1] for step, value in enumerate(risen) if (found := screen.look(step, float(value))))
        assert onset == start - 1


def filled(values=(2.0, 2.01, 1.99, 2.0, 2.01, 2.0, 1.99)) -> Canary:
    canary = Canary(OPTIONS)
    for number, value in enumerate(values):
        assert canary.take(50 * number, value, regular=True, deciding=True) is None
    return canary


def test_far_above_the_reference_decides_once_and_a_little_above_twice_in_four_steps() -> None:
    canary = filled()
    bound = canary.bound
    assert math.log(1.05) <= bound < 0.2
    assert "is 0.9" in filled().take(400, 1.99 + 0.95, regular=False, deciding=True)
    middle = 1.99 + 1.5 * bound
    assert canary.take(400, middle, regular=False, deciding=True) is None and not canary.again(403)
    assert canary.take(402, middle, regular=True, deciding=True) is None
    assert "twice since step 400" in canary.take(404, middle, regular=False, deciding=True)


def test_a_passed_value_in_between_takes_the_first_back() -> None:
    canary = filled()
    middle = 1.99 + 1.5 * canary.bound
    for step, value in ((400, middle), (404, 2.0), (408, middle)):
        assert canary.take(step, value, regular=False, deciding=True) is None
    assert list(canary.passed) == list(filled().passed), "answers to suspicions are no references"


def test_damage_does_not_hide_below_references_of_a_fast_learner() -> None:
    canary = filled([3.0, 2.6, 2.3, 2.1, 1.95, 1.85, 1.78])
    assert canary.reference == 1.78
    assert canary.take(400, 2.78, regular=False, deciding=True) is not None


def test_a_canary_that_is_not_finite_decides_at_any_time() -> None:
    assert "nan" in Canary(OPTIONS).take(1, math.nan, regular=True, deciding=False)


def test_benign_outlier_and_shift_of_domain_are_no_damage() -> None:
    """M3: the losses call, the canary answers that nothing has happened."""
    loss, canary = quiet(1500)
    loss[700] += 6.0
    loss[900:] += 0.5
    done, alarms = two_stages(loss, canary, OPTIONS)
    assert alarms == [] and 2 <= done.evaluations < 60


def test_an_outlier_asks_the_canary_within_the_step() -> None:
    machine = Machine(OPTIONS)
    loss, canary = quiet(520)
    for step, value in enumerate(loss):
        machine.see(step, float(value) + (1.0 if step == 510 else 0.0))
        assert machine.asks(step + 1) == ((step + 1) % 50 == 0 or step == 510)
        if machine.asks(step + 1):
            machine.answer(step + 1, float(canary[step]))


def test_only_a_checkpoint_at_which_the_canary_passed_is_certified() -> None:
    machine = Machine(OPTIONS, checkpoint_every=70)
    assert machine.veto_certification(0) is None
    loss, canary = quiet(500)
    for step, value in enumerate(loss):
        machine.see(step, float(value))
        if machine.asks(step + 1):
            machine.answer(step + 1, float(canary[step]))
        assert (machine.veto_certification(step + 1) is None) == ((step + 1) % 50 == 0 or (step + 1) % 70 == 0)
    machine.answer(501, 2.0 + 1.5 * machine.canary.bound)
    assert "above its bound" in machine.veto_certification(501)
    machine.answer(550, 4.0)
    assert machine.veto_certification(550) == machine.damage[0]


def test_nothing_is_decided_while_warming_up() -> None:
    loss, canary = quiet(290)
    loss[200:] += 3
    canary[200:] += 3
    assert two_stages(loss, canary, OPTIONS)[1] == []


@pytest.mark.parametrize("rollbacks, expected", [
    (0, Remedy(margin=8)),
    (1, Remedy(margin=8, older=1, window=4, rate=0.5)),
    (2, Remedy(margin=8, older=1, window=16, rate=0.5, reset_moments=True)),
    (7, Remedy(margin=8, older=1, window=16, rate=0.5, reset_moments=True)),
])
def test_ladder(rollbacks: int, expected: Remedy) -> None:
    assert remedy(rollbacks, 8) == expected


def test_steps_that_are_not_finite_in_a_row_are_traced_to_the_update_before_them() -> None:
    monitor = build_component("safety monitor", "rollback")
    good = {"loss": 2.0, "total": 2.0, "gradient_nonfinite": 0.0, "state_nonfinite": 0.0, "rollbacks": 0.0}
    bad = good | {"total": math.nan}
    actions = [monitor.judge(step, floats).action for step, floats in ((8, bad), (9, good), (10, bad), (11, bad))]
    assert actions == [Action.CONTINUE] * 4, "the core skips such a step; a good one in between begins anew"
    verdict = monitor.judge(12, bad)
    assert verdict.action == Action.ROLLBACK and verdict.onset == 9, "steps 10, 11 and 12 were not finite"
    assert build_component("safety monitor", "rollback").judge(5, good | {"state_nonfinite": 1.0}).onset == 4


def test_damage_is_found_and_health_is_left_alone() -> None:
    """M2 and M3 in short, on the model of noise."""
    random = np.random.default_rng(7)
    ours, theirs = healthy([], steps=6_000, noise=Noise(), options=OPTIONS, random=random)
    assert ours.alarms == 0 and theirs.rate > 3_000
    assert max(delays(1.0, trials=10, noise=Noise(), options=OPTIONS, random=random)) <= 25
    times = delays(0.3, trials=10, noise=Noise(), options=OPTIONS, random=random)
    assert sum(time <= 25 for time in times) >= 9


def test_the_common_rule_fires_on_noise() -> None:
    loss, _ = quiet(2_000)
    assert five_percent(loss, PerplexitySpikeOptions()).alarms > 100
    assert five_percent(loss, PerplexitySpikeOptions(threshold=1.0)).alarms == 0


def test_recorded_runs_are_replayed_with_their_own_canary(tmp_path, capsys) -> None:
    loss, canary = quiet(800)
    rows = [{"event": "train", "step": step, "loss": float(value), "sequence": step, "attempt": 1}
            for step, value in enumerate(loss)]
    values = [{"event": "probe", "step": step, "rollback/canary": float(canary[step])} for step in range(0, 800, 50)]
    found, modelled = recorded([*rows, *values], Noise(canary=9.0), np.random.default_rng(0))
    assert np.array_equal(found, loss)
    assert np.std(modelled - np.median(loss)) < 0.05, "the deviation of the run's own values, not that of the model"
    assert measured_deviation(canary) == pytest.approx(0.003, rel=0.15)
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([str(tmp_path), "--seed", "3", "--trials", "1"]) == 0
    said = capsys.readouterr().out
    assert "seed 3, 500 healthy steps" in said and "perplexity-spike" in said


@pytest.mark.parametrize("option", ["degrees", "scale", "memory"])
def test_noise_without_a_meaning_is_refused_by_name(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as Student's t of two degrees of freedom, whose variance is infinite."""
    with pytest.raises(SystemExit) as caught:
        main(["--steps", "10", "--trials", "1", f"--noise-{option}", "2" if option != "scale" else "0"])
    assert caught.value.code == 2 and f"--noise-'{option}'" in capsys.readouterr().err
