"""Intervals of paired comparisons against what they claim."""

from __future__ import annotations

import math

import numpy as np
import pytest

from muse_core.comparison.ratio import Measured, paired, paired_by_source, student, told_interval, with_interval


def run(generator: np.random.Generator, *, level: float, text: np.ndarray, noise: float) -> Measured:
    """Rows of 100 bytes in 20 documents; ``text`` (documents,) is how hard each is, ``noise`` the run's own luck."""
    document = np.repeat(np.arange(len(text)), 5)
    nats = 100 * level * text[document] * math.exp(noise * generator.normal())
    return Measured(document=document, above=nats, below=np.full(len(document), 100.0))


def experiment(seed: int, *, ratio: float, seeds: int, noise: float):
    generator = np.random.default_rng(seed)
    text = np.exp(0.3 * generator.normal(size=20))
    variant = {s: run(generator, level=ratio, text=text, noise=noise) for s in range(seeds)}
    base = {s: run(generator, level=1.0, text=text, noise=noise) for s in range(seeds)}
    return variant, base


def test_the_ratio_is_the_geometric_mean_over_seeds() -> None:
    variant, base = experiment(0, ratio=0.9, seeds=3, noise=0.02)
    found = paired(variant, base, ratio=True)
    by_hand = [variant[s].above.sum() / base[s].above.sum() for s in range(3)]
    assert found.by_seed == pytest.approx(by_hand) and found.seeds == 3
    assert found.value == pytest.approx(math.exp(np.mean(np.log(by_hand))))
    assert found.low < found.value < found.high


def test_of_one_document_the_interval_is_students_over_the_seeds() -> None:
    """Two seeds: one degree of freedom, whose 97.5 % quantile is tan(0.475 π); of two values the standard error is half
    their distance."""
    def whole(nats: float) -> Measured:
        return Measured(document=np.zeros(1, int), above=np.array([nats]), below=np.array([100.0]))

    found = paired({1: whole(90.0), 2: whole(80.0)}, {1: whole(100.0), 2: whole(100.0)}, ratio=True)
    half = math.tan(0.475 * math.pi) * (math.log(0.9) - math.log(0.8)) / 2
    assert math.log(found.high / found.value) == pytest.approx(half, rel=1e-4)
    assert math.log(found.value / found.low) == pytest.approx(half, rel=1e-4)


def test_text_and_seeds_add_as_independent_errors_do() -> None:
    """Of documents of equal size the jackknife of a mean difference is its standard error, the spread over √4; all
    deviate equally, so that four documents count, with three degrees of freedom."""
    def run(mean: float, spread: float) -> Measured:
        above = 10 * (mean + spread * np.array([1.0, -1.0, 1.0, -1.0]))
        return Measured(document=np.arange(4), above=above, below=np.full(4, 10.0))

    found = paired({1: run(0.52, 0.01), 2: run(0.53, 0.03)}, {1: run(0.5, 0), 2: run(0.5, 0)}, ratio=False)
    of_text = 3.182 * 0.02 * math.sqrt(4 / 3) / math.sqrt(4)
    of_seeds = 12.706 * 0.01 / math.sqrt(2) / math.sqrt(2)
    assert found.value == pytest.approx(0.025) and found.by_seed == pytest.approx((0.02, 0.03))
    assert found.high - found.value == pytest.approx(math.hypot(of_text, of_seeds), rel=1e-9)
    assert found.value - found.low == pytest.approx(math.hypot(of_text, of_seeds), rel=1e-9)


@pytest.mark.parametrize(("accuracies", "low", "high"), [((0.01, 0.98), -0.6, 0.4), ((0.1, 0.12), -0.6, -0.36)])
def test_no_interval_of_accuracies_goes_beyond_what_accuracies_can_be(
    accuracies: tuple[float, float], low: float, high: float
) -> None:
    """Two seeds of which one learned say little: the interval would be wider than 0 to 1."""
    def run(accuracy: float) -> Measured:
        return Measured(document=np.arange(40), above=np.full(40, 10 * accuracy), below=np.full(40, 10.0))

    found = paired({seed: run(one) for seed, one in enumerate(accuracies)}, {0: run(0.6), 1: run(0.6)}, ratio=False)
    assert found.low == pytest.approx(low, abs=0.02) and found.high == pytest.approx(high, abs=0.01)
    assert found.low >= -0.6 - 1e-12 and found.high <= 0.4 + 1e-12


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (5, 2.571), (10, 2.228), (15, 2.131), (20, 2.086), (30, 2.042), (60, 2.000),
     (120, 1.980), (1e9, 1.960)],
)
def test_quantiles_are_those_of_published_tables(freedom: float, quantile: float) -> None:
    assert float(student(np.array(freedom))) == pytest.approx(quantile, abs=6e-4)


def test_by_source_each_has_the_ratio_of_its_own_documents() -> None:
    document, below = np.repeat(np.arange(20), 3), np.full(60, 100.0)
    sources = {number: "code" if number % 2 else "prose" for number in range(20)}
    own = Measured(document=document, above=np.where(document % 2, 80.0, 99.0), below=below, sources=sources)
    base = Measured(document=document, above=below, below=below, sources=sources)
    found = paired_by_source({1: own}, {1: base}, ratio=True)
    assert {name: one.value for name, one in found.items()} == pytest.approx({"code": 0.8, "prose": 0.99})
    assert {one.documents for one in found.values()} == {10.0}
    untold = Measured(document=document, above=below, below=below)
    alone = Measured(document=document, above=below, below=below, sources=dict.fromkeys(range(20), "code"))
    assert paired_by_source({1: own}, {1: untold}, ratio=True) == {}
    assert paired_by_source({1: alone}, {1: alone}, ratio=True) == {}


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (0.94, 0.97, "0.9400 to 0.9700"),
        (0.99989, 0.99997, "0.9999 to 0.99997"),  # better, which 0.9999 to 1.0000 does not say
        (1.0000004, 1.00011, "1.0000004 to 1.0001"),
        (1.0, 1.0, "1.0000 to 1.0000"),
        (-0.00002, 0.0, "-0.00002 to 0.0000"),
        (1 - 1e-15, math.nan, "1.0000 to nan"),
    ],
)
def test_an_interval_tells_on_which_side_of_equal_its_bounds_lie(low: float, high: float, told: str) -> None:
    assert told_interval({"low": low, "high": high}) == told


@pytest.mark.parametrize("ratio", [True, False])
def test_one_seed_and_one_document_give_no_interval(ratio: bool) -> None:
    """An interval of no width would claim certainty."""
    def of(above: float, *empty: float) -> Measured:
        return Measured(document=np.arange(1 + len(empty)), above=np.array([above, *empty]),
                        below=np.array([10.0, *(0.0 for _ in empty)]))

    for empty in ((), (0.0,)):  # a document of which no byte was read adds nothing
        found = paired({1: of(9.0, *empty)}, {1: of(10.0, *empty)}, ratio=ratio)
        assert found.value == pytest.approx(0.9 if ratio else -0.1) and (found.low, found.high) == (None, None)
    assert with_interval({"value": 0.9, "low": None, "high": None}) == "0.9000"
    for empty in ((), (0.0,)):
        both = paired({1: of(9.0, *empty), 2: of(8.0, *empty)}, {1: of(10.0, *empty), 2: of(10.0, *empty)}, ratio=ratio)
        assert both.low is not None and both.low < both.value < both.high


def test_hard_and_easy_text_cancels_because_it_is_the_same_in_both_arms() -> None:
    variant, base = experiment(1, ratio=0.95, seeds=1, noise=0.0)
    found = paired(variant, base, ratio=True)
    assert found.value == pytest.approx(0.95) and found.high - found.low < 1e-9


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for seed in range(200):
        found = paired(*experiment(seed, ratio=0.97, seeds=3, noise=0.02), ratio=True)
        hits += found.low <= 0.97 <= found.high
    assert 180 <= hits, f"{hits} of 200 intervals hold the truth"
    assert hits < 200, "an interval that is never wrong is too wide"


def test_rows_of_one_document_are_not_taken_for_independent() -> None:
    """Luck by document: as many rows again from the same documents must not narrow the interval."""
    generator = np.random.default_rng(2)
    luck = np.exp(0.2 * generator.normal(size=20))

    def width(rows: int) -> float:
        document = np.repeat(np.arange(20), rows)
        base = Measured(document=document, above=np.full(20 * rows, 50.0), below=np.full(20 * rows, 100.0))
        variant = Measured(document=document, above=50.0 * luck[document], below=base.below)
        found = paired({0: variant}, {0: base}, ratio=True)
        return found.high - found.low

    assert width(50) == pytest.approx(width(2), rel=0.05)


def test_accuracies_are_compared_by_their_difference() -> None:
    document, below = np.arange(100), np.full(100, 10.0)
    variant = Measured(document=document, above=np.full(100, 9.0), below=below)
    base = Measured(document=document, above=np.full(100, 4.0), below=below)
    found = paired({1: variant}, {1: base}, ratio=False)
    assert found.value == pytest.approx(0.5) and found.low == pytest.approx(0.5)


@pytest.mark.parametrize("spread", [0.8, 1.2])
@pytest.mark.parametrize("by_length", [False, True])
@pytest.mark.parametrize("count", [8, 12, 40, 45, 80])
def test_documents_of_unequal_length_are_covered_when_text_noise_rules(
    count: int, by_length: bool, spread: float
) -> None:
    """The design of tests/benchmarks/interval_coverage.py through ``paired`` itself, with fewer repetitions."""
    generator = np.random.default_rng(7)
    power = 0.03 if by_length else 0.0
    truth = 0.97 * math.exp(0.05**2 / 2 + ((1 + power) ** 2 - 1) * spread**2 / 2)
    hits, document = 0, np.arange(count)
    for _ in range(1000):
        length = 1000 * np.exp(spread * generator.normal(size=count))
        nats = length * np.exp(0.2 * generator.normal(size=count))
        effect = 0.97 * np.exp(0.05 * generator.normal(size=count)) * (length / 1000) ** power
        variant = Measured(document=document, above=nats * effect, below=length)
        base = Measured(document=document, above=nats, below=length)
        found = paired({0: variant}, {0: base}, ratio=True)
        hits += found.low <= truth <= found.high
    # 0.93 less two standard errors of 1000 draws.
    assert hits >= 1000 * (0.93 - 2 * math.sqrt(0.93 * 0.07 / 1000)), f"{hits} of 1000 intervals hold the truth"


def test_an_effect_that_one_document_carries_has_a_wide_interval() -> None:
    """Forty documents of equal size, of which one has all of the effect: they say no more than two."""
    below = np.full(40, 1000.0)
    base = Measured(document=np.arange(40), above=below, below=below)
    variant = Measured(document=np.arange(40), above=below * np.where(np.arange(40) == 0, 0.5, 1.0), below=below)
    found = paired({0: variant}, {0: base}, ratio=True)
    assert found.documents == pytest.approx(40)
    half = math.log(found.high / found.value)
    assert half > 4 * abs(math.log(found.value)), "Student's t with 39 degrees of freedom would be 2.0 here"
