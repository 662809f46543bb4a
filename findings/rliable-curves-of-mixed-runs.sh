#!/usr/bin/env bash
# rliable 1.2.0: get_interval_estimates takes scores of shape (runs, tasks, checkpoints), as its documentation says, and
# draws the run anew for every checkpoint, so that the curves that it computes a statistic of are put together from
# points of different runs. For one checkpoint after the other, as in README, that is right. What looks at whole curves
# (their mean, their best) has intervals that are far too narrow where runs differ: of 200 experiments with ten runs and
# 50 checkpoints the 95 % interval of the curves' mean holds the true one in 42, and in 179 if each run is averaged
# before. Nothing is said. random_state, documented to make intervals reproducible, does nothing either: numpy's global
# generator decides, and is moved. (arch warns that the name is deprecated, not that it is without effect.)
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 pandas==2.3.3 statsmodels==0.15.0 arch==7.2.0 \
    rliable==1.2.0
cat > "$work/program.py" <<'P'
import numpy as np
from rliable.library import get_interval_estimates


def interval(scores, **options):
    """95 % interval of the mean over everything."""
    estimate, bounds = get_interval_estimates({"": scores}, lambda drawn: np.array([drawn.mean()]), reps=300, **options)
    assert np.isclose(estimate[""][0], scores.mean())
    return bounds[""][:, 0]


numbers, held, widths = np.random.default_rng(0), np.zeros(2, int), np.zeros(2)
np.random.seed(0)
for _ in range(200):
    runs = numbers.normal(0, 1, (10, 1, 1)) + numbers.normal(0, 0.3, (10, 1, 50))  # the mean of such runs is 0
    for way, scores in enumerate((runs, runs.mean(2))):
        low, high = interval(scores)
        held[way] += low < 0 < high
        widths[way] += (high - low) / 200
print("intervals of the mean of ten curves, of 200 how many hold the true one, mean width: {} of curves, {:.2f}; {} of"
      " the curves' means, {:.2f}".format(held[0], widths[0], held[1], widths[1]))
assert held[0] < 60 and held[1] > 160 and widths[1] > 4 * widths[0]
one = [interval(runs[:, :, :1], random_state=np.random.RandomState(3)) for _ in range(2)]
two = []
for state in (3, 4):
    np.random.seed(0)
    two.append(interval(runs[:, :, :1], random_state=np.random.RandomState(state)))
print(f"the same random_state twice: {one[0]}, {one[1]}; two, after the same np.random.seed: {two[0]}, {two[1]}")
assert (one[0] != one[1]).any() and (two[0] == two[1]).all()
P
"$work/venv/bin/python" -W ignore "$work/program.py"
