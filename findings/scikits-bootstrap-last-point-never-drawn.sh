#!/usr/bin/env bash
# scikits-bootstrap 1.1.1: bootstrap_indices_moving_block, for series whose neighbours are alike, never draws the last
# point. Its docstring says that without wrap the last block starts at L - block_length; the start is drawn below that
# number, so that this block is missing. The last point is then in no sample at all, and a series whose last value is
# another one has the same intervals, to the last bit: of a run's losses the most recent one is left out. Nothing is
# said. With blocks of 3 in 20 points the 18 blocks should be alike and 17 are. wrap=True draws every point alike, and
# so does bootstrap_indices.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scikits-bootstrap==1.1.1
cat > "$work/program.py" <<'P'
import numpy as np
from scikits.bootstrap import bootstrap_indices, bootstrap_indices_moving_block

POINTS, SAMPLES = 20, 10000


def drawn(samples):
    return sum(np.bincount(indices, minlength=POINTS) for indices in samples) / SAMPLES


series = np.linspace(3.0, 2.0, POINTS)
other = series.copy()
other[-1] = 100.0
for length in (1, 2, 3, 5, 10):
    samples = list(bootstrap_indices_moving_block(series, SAMPLES, block_length=length, seed=1))
    starts = np.unique([indices[::length] for indices in samples])
    counts, wrapped = drawn(samples), drawn(bootstrap_indices_moving_block(series, SAMPLES, length, wrap=True, seed=1))
    print(f"blocks of {length}: blocks start at 0 to {starts.max()} (documented: {POINTS - length}); the last point is"
          f" drawn {counts[-1]:.2f} times a sample, the first {counts[0]:.2f}; with wrap {wrapped[-1]:.2f}")
    assert starts.max() == POINTS - length - 1 and counts[-1] == 0 < counts[0]
    assert abs(wrapped - 1).max() < 0.1
    means, with_other = ([values[indices].mean() for indices in samples] for values in (series, other))
    assert means == with_other
print(f"2.5 and 97.5 % of the mean: {np.percentile(means, [2.5, 97.5]).round(3)}, with a last value of 100 the same")
assert abs(drawn(bootstrap_indices(series, SAMPLES, seed=1)) - 1).max() < 0.1
P
"$work/venv/bin/python" "$work/program.py"
