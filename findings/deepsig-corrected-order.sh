#!/usr/bin/env bash
# deepsig 1.2.8: bonferroni_correction takes p-values in any order and gives the corrected ones back in another: what it
# computes in sorted order is put back by the permutation that sorted it and not by its inverse. Sorted input, and two
# values, hide it, for there both are the same. Of 0.04, 0.5 and 0.001 the second, which shows nothing, comes back as
# 0.003 and the third as 0.08: the wrong comparison is reported as significant. What it computes is Holm's correction
# but for its running maximum, so that a larger p-value can become the smaller one: 0.01, 0.011 and 0.012 become 0.03,
# 0.022 and 0.012. The documentation says that p-values are corrected by Bonferroni's method, and nothing of order.
# statsmodels' multipletests (method "holm") is right.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 statsmodels==0.15.0 deepsig==1.2.8
cat > "$work/program.py" <<'P'
import itertools
import random

import numpy as np
from deepsig import bonferroni_correction
from statsmodels.stats.multitest import multipletests


def holm(values):
    """Each value times the number of those that are not smaller, never below what a smaller value got."""
    result, largest = np.empty(len(values)), 0.0
    for rank, at in enumerate(np.argsort(values)):
        largest = max(largest, min(1.0, (len(values) - rank) * values[at]))
        result[at] = largest
    return result


for values in ((0.001, 0.04, 0.5), (0.04, 0.5, 0.001), (0.01, 0.011, 0.012)):
    found, right = bonferroni_correction(np.array(values)), holm(values)
    assert np.allclose(right, multipletests(values, method="holm")[1])
    plain = np.minimum(1, 3 * np.array(values))
    print(f"{values}: corrected {found.round(4)}, Holm {right.round(4)}, Bonferroni {plain.round(4)}")
    assert np.allclose(found, right) == (values[0] == 0.001)
assert np.allclose(bonferroni_correction(np.array((0.04, 0.5, 0.001))), (0.5, 0.003, 0.08))
assert np.allclose(bonferroni_correction(np.array((0.01, 0.011, 0.012))), (0.03, 0.022, 0.012))
orders = list(itertools.permutations((0.001, 0.04, 0.5)))
wrong = sum(not np.allclose(bonferroni_correction(np.array(values)), holm(values)) for values in orders)
print(f"{wrong} of the {len(orders)} orders of 0.001, 0.04 and 0.5 are given to other comparisons")
assert wrong == 2
numbers, wrong = random.Random(0), 0
for _ in range(1000):
    values = np.array([numbers.uniform(0, 0.002)] + [numbers.uniform(0.3, 1) for _ in range(9)])
    at = numbers.randrange(10)
    values[[0, at]] = values[[at, 0]]
    wrong += bonferroni_correction(values)[at] > 0.05
print(f"ten comparisons, one with p below 0.002: in {wrong} of 1000 cases it is not the one below 0.05 afterwards")
assert wrong > 700
P
"$work/venv/bin/python" -W ignore "$work/program.py"
