"""The conformance suite of schedules."""

from __future__ import annotations

import itertools
import random

import pytest

from muse_core.recipe.schema import Train
from muse_core.testing.building import resolve
from muse_core.testing.cases import Case
from muse_core.testing.suite import Suite
from muse_core.training.schedules import Rates

SPANS = [(1, 0), (7, 3), (20, 50), (400, 0), (400, 40)]
"""(steps, warm-up)."""


class ScheduleSuite(Suite):
    """Shares of the peak rate by the number of updates; see ``contracts.Schedule``."""

    kind = "schedule"

    def rates(self, case: Case, steps: int, warmup: int, final: float = 0.1) -> Rates:
        """The schedule over a span."""
        use = resolve(case.kind, case.name, case.options, self.registry())
        return Rates(Train(steps=steps, warmup_steps=warmup, final_rate=final, schedule=use))

    @pytest.mark.parametrize("span", SPANS)
    def test_gives_shares_also_beyond_the_span(self, case: Case, span: tuple[int, int]) -> None:
        steps, warmup = span
        rates = self.rates(case, steps, warmup)  # which raises for a number that is no share
        for updates in range(3 * steps):
            share = rates(updates)
            assert isinstance(share, float), f"the share after {updates} updates is {share!r}, not a float"

    def test_is_a_function_of_the_number_of_updates(self, case: Case) -> None:
        rates, other = self.rates(case, 400, 40), self.rates(case, 400, 40)
        expected = [rates(updates) for updates in range(600)]
        order = list(range(600))
        random.Random(0).shuffle(order)
        for updates in order:
            assert rates(updates) == other(updates) == expected[updates], "depends on what was asked before"

    def test_warms_up_and_reaches_the_peak(self, case: Case) -> None:
        rates = self.rates(case, 400, 40)
        assert rates(0) < 0.5, "there is no warm-up at the first of 40 steps"
        assert max(rates(updates) for updates in range(400)) > 0.99, "the peak rate is never reached"

    def test_is_continuous(self, case: Case) -> None:
        """The largest change between two updates shrinks when span and warm-up become longer."""

        def jump(steps: int) -> float:
            rates = self.rates(case, steps, steps // 10)
            return max(abs(a - b) for a, b in itertools.pairwise(map(rates, range(steps))))

        assert jump(1600) <= max(0.75 * jump(400), 1e-9), "the rate jumps"

    def test_a_longer_span_shares_the_rates_that_it_says(self, case: Case) -> None:
        for steps, more in itertools.product((10, 57, 400), (1, 13, 400)):
            rates, longer = self.rates(case, steps, 5), self.rates(case, steps + more, 5)
            assert 0 <= rates.unchanged_until <= steps, f"unchanged_until is {rates.unchanged_until} of {steps} updates"
            for updates in range(rates.unchanged_until):
                assert rates(updates) == longer(updates), f"at update {updates} of {steps} a longer span differs"
