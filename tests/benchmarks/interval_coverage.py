"""How often the interval of a paired comparison holds the truth, where the noise is the text's.

    python tests/benchmarks/interval_coverage.py [--repetitions 20000]
    python tests/benchmarks/interval_coverage.py --single --repetitions 3000

``--single``: the bootstrap interval of one run, bits per byte that scatter by 20 % from document to document.

One seed. Documents have log-normal lengths of log-standard deviation 0.8 or 1.2; the ratio of a document scatters by
5 % and, where effects follow length, grows with length to the power 0.03. The quantile is the median over repetitions.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

from muse_core.comparison.ratio import Measured, freedom, kish, paired, student
from muse_core.evaluation.held_out import interval

LEVEL, SCATTER, HARDNESS, POWER = 0.97, 0.05, 0.2, 0.03


def texts(generator: np.random.Generator, shape: tuple[int, int], spread: float, power: float) -> list[np.ndarray]:
    """Lengths, nats of the variant and of the baseline, each (repetitions, documents)."""
    lengths = np.exp(spread * generator.normal(size=shape))
    base = lengths * np.exp(HARDNESS * generator.normal(size=shape))
    return [lengths, base * LEVEL * np.exp(SCATTER * generator.normal(size=shape)) * lengths**power, base]


def truth(spread: float, power: float) -> float:
    """log of E[variant] / E[baseline]: all factors are log-normal."""
    return math.log(LEVEL) + SCATTER**2 / 2 + ((1 + power) ** 2 - 1) * spread**2 / 2


def intervals(lengths: np.ndarray, variant: np.ndarray, base: np.ndarray) -> tuple[np.ndarray, ...]:
    """(repetitions,) each: log-ratio, half width, effective documents and quantile, as ``paired`` computes them for one
    seed."""
    count = lengths.shape[1]
    above, below = variant.sum(1, keepdims=True), base.sum(1, keepdims=True)
    without = np.log((above - variant) / (below - base))
    effective = kish(lengths)
    quantile = student(freedom(effective, without))
    half = quantile * np.sqrt((count - 1) * without.var(1))
    return np.log(above / below)[:, 0], half, effective, quantile


def agrees(lengths: np.ndarray, variant: np.ndarray, base: np.ndarray) -> None:
    """Whether the first repetition gives what ``paired`` gives."""
    document = np.arange(lengths.shape[1])
    runs = [{0: Measured(document=document, above=nats[0], below=lengths[0])} for nats in (variant, base)]
    value, half, effective, _ = (part[0] for part in intervals(lengths, variant, base))
    found = paired(*runs, ratio=True)
    assert np.allclose([found.value, found.low, found.high, found.documents],
                       [*np.exp([value, value - half, value + half]), effective]), (found, value, half)


def coverage(
    generator: np.random.Generator, count: int, spread: float, power: float, repetitions: int
) -> tuple[float, float, float]:
    """Mean effective documents, coverage, median quantile."""
    drawn = [1000 * part for part in texts(generator, (repetitions, count), spread, power)]
    agrees(*drawn)
    value, half, effective, quantile = intervals(*drawn)
    holds = np.abs(value - truth(spread, power)) <= half
    return effective.mean(), holds.mean(), float(np.median(quantile))


def single(generator: np.random.Generator, count: int, repetitions: int) -> tuple[float, float]:
    """Mean effective documents, and coverage of the interval of one run: lengths of log-standard deviation 0.8."""
    sizes = np.exp(0.8 * generator.normal(size=(repetitions, count)))
    nats = sizes * np.exp(HARDNESS * generator.normal(size=sizes.shape))
    found = np.array([interval(above, below, np.arange(count)) for above, below in zip(nats, sizes, strict=True)])
    mean = math.exp(HARDNESS**2 / 2)
    return kish(sizes).mean(), ((found[:, 0] <= mean) & (mean <= found[:, 1])).mean()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20_000)
    parser.add_argument("--single", action="store_true")
    given = parser.parse_args()
    repetitions, generator = given.repetitions, np.random.default_rng(5)
    if given.single:
        for count in (5, 8, 12, 24, 40, 70, 160):
            weight, held = single(generator, count, repetitions)
            print(f"{count} documents, of equal size {weight:.1f}: coverage {held:.3f}", flush=True)
        raise SystemExit
    print("| spread | follow length | documents | of equal size | coverage | quantile |")
    print("|---|---|---|---|---|---|")
    for spread in (0.8, 1.2):
        for power in (0.0, POWER):
            for count in (5, 8, 12, 24, 40, 45, 80, 160, 400, 600, 1000):
                row = coverage(generator, count, spread, power, max(2000, min(repetitions, 6_000_000 // count)))
                print(f"| {spread} | {'yes' if power else 'no'} | {count} | {row[0]:.0f} | {row[1]:.3f} | {row[2]:.2f} "
                      "|", flush=True)
