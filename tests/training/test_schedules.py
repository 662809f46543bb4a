"""Schedules against their closed forms, and what a longer run has in common with a shorter one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muse_core.component import Component
from muse_core.errors import PluginError, RecipeError
from muse_core.recipe import check_table
from muse_core.recipe.schema import Train
from muse_core.testing.building import chosen, resolve
from muse_core.testing.loose import registry_with
from muse_core.training.options import CosineOptions
from muse_core.training.schedules import Rates

FORMS = {
    "linear": lambda u, f: 1 - (1 - f) * u,
    "cosine": lambda u, f: f + (1 - f) * (1 + math.cos(math.pi * u)) / 2,
    "root": lambda u, f: 1 - (1 - f) * math.sqrt(u),
    "exponential": lambda u, f: f**u,
}


def rates(
    schedule: str = "cosine", /, steps: int = 100, warmup: int = 0, final: float = 0.1, **options: object
) -> Rates:
    use = chosen("schedule", schedule, **options)
    return Rates(Train(steps=steps, warmup_steps=warmup, final_rate=final, schedule=use))


@given(st.integers(1, 500), st.integers(0, 100), st.floats(0, 1))
def test_cosine_warms_up_to_the_peak_and_ends_at_the_final_rate(steps: int, warmup: int, final: float) -> None:
    factor = rates(steps=steps, warmup=warmup, final=final)
    factors = [factor(updates) for updates in range(steps)]
    assert all(0.0 <= factor <= 1.0 + 1e-12 for factor in factors)
    for updates in range(min(warmup, steps)):
        assert factors[updates] == (updates + 1) / warmup
    if steps > warmup + 1:
        assert math.isclose(factors[warmup], 1.0) and math.isclose(factors[-1], final, abs_tol=1e-12)
        assert all(a >= b - 1e-12 for a, b in zip(factors[warmup:], factors[warmup + 1 :]))
        assert factor(steps) == factor(3 * steps) == factors[-1], "it does not rise again"


@pytest.mark.parametrize("form", FORMS)
def test_wsd_is_its_closed_form(form: str) -> None:
    """200 steps, 20 of warm-up, a decay over the last 50: the peak from 20 to 149, then u = 1/50 … 1."""
    factor = rates("wsd", steps=200, warmup=20, final=0.05, decay=0.25, form=form)
    assert [factor(n) for n in range(20)] == [(n + 1) / 20 for n in range(20)]
    assert {factor(n) for n in range(20, 150)} == {1.0}
    for done in range(1, 51):
        assert factor(149 + done) == pytest.approx(FORMS[form](done / 50, 0.05), rel=1e-14)
    assert factor(199) == factor(5000) == pytest.approx(0.05, rel=1e-14)


def test_the_values_of_wsd_that_the_guide_prints() -> None:
    table = {form: [rates("wsd", decay=0.2, form=form)(n) for n in (0, 79, 84, 89, 94, 99)] for form in FORMS}
    assert {form: [f"{value:.3f}" for value in values] for form, values in table.items()} == {
        "linear": ["1.000", "1.000", "0.775", "0.550", "0.325", "0.100"],
        "cosine": ["1.000", "1.000", "0.868", "0.550", "0.232", "0.100"],
        "root": ["1.000", "1.000", "0.550", "0.364", "0.221", "0.100"],
        "exponential": ["1.000", "1.000", "0.562", "0.316", "0.178", "0.100"],
    }


@given(
    st.sampled_from(sorted(FORMS)), st.integers(1, 400), st.integers(1, 400), st.integers(0, 50), st.floats(0, 1),
    st.floats(0.01, 1),
)
def test_a_longer_wsd_has_the_same_rates_until_the_decay(
    form: str, steps: int, more: int, warmup: int, decay: float, final: float
) -> None:
    short, long = (
        rates("wsd", steps=count, warmup=warmup, final=final, decay=decay, form=form) for count in (steps, steps + more)
    )
    assert 0 <= short.unchanged_until <= min(steps, long.unchanged_until)
    assert [short(n) for n in range(short.unchanged_until)] == [long(n) for n in range(short.unchanged_until)]
    assert all(0.0 < short(n) <= 1.0 for n in range(steps + more))


def test_cosine_has_nothing_in_common_with_a_longer_one() -> None:
    assert rates().unchanged_until == 0


def test_a_decay_over_nothing_keeps_the_peak() -> None:
    factor = rates("wsd", steps=50, decay=0.0)
    assert {factor(n) for n in range(80)} == {1.0} and factor.unchanged_until == 50


def test_the_schedule_of_a_recipe() -> None:
    table = {"name": "a", "model": {"block": ["attention"]}}
    assert check_table(table).recipe.train.schedule.name == "cosine"
    checked = check_table(table | {"train": {"schedule": {"use": "wsd", "form": "root"}, "schedule_steps": 40}})
    assert checked.resolved["train"]["schedule"] == {"use": "wsd", "decay": 0.2, "form": "root"}
    assert Rates(checked.recipe.train).unchanged_until == 32, "the schedule spans schedule_steps"
    exponential = {"schedule": {"use": "wsd", "form": "exponential"}, "final_rate": 0.0}
    with pytest.raises(RecipeError, match=r"train\.schedule: form = \"exponential\" never reaches"):
        check_table(table | {"train": exponential})
    with pytest.raises(RecipeError, match=r"train\.schedule: there is no schedule 'wds' - did you mean 'wsd'\?"):
        check_table(table | {"train": {"schedule": "wds"}})


class Doubled:
    """A schedule that is no share."""

    def __init__(self, options: object, context: object):
        pass

    def factor(self, updates: int) -> float:
        return 1.0 if updates < 3 else 2.0 if updates == 3 else updates // 0


def test_a_schedule_that_gives_no_share_is_named() -> None:
    component = Component("doubled", options=CosineOptions, implementation=f"{__name__}:Doubled")
    use = resolve("schedule", "doubled", registry=registry_with(("schedule", component)))
    factor = Rates(Train(schedule=use))
    assert factor(2) == 1.0
    with pytest.raises(PluginError, match="'doubled' of loose 0 does not keep the contract: at update 3 .* is 2.0"):
        factor(3)
    with pytest.raises(PluginError, match="schedule 'doubled' of loose 0 raised at update 4: ZeroDivisionError"):
        factor(4)
