#!/usr/bin/env bash
# reservoirpy 0.4.2: RLS, recursive least squares, finds no least squares solution with its default fit_bias=True. The
# bias is no part of the recursion: it is a running mean of the errors, and by the time it is near its value the weights
# have been fitted beside another one and their steps have become small. With inputs of mean 2, 20,000 examples without
# noise leave the weights 10, -0.2 and 7 at 9.4, -0.9 and 6.4 and an error of 1.1; a column of ones with fit_bias=False
# leaves less than 0.001, and so does Ridge with its bias. Inputs of mean 0, as in the documentation's example, hide it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numpy==2.4.6 scipy==1.17.1 reservoirpy==0.4.2
cat > "$work/program.py" <<'P'
import numpy as np
from reservoirpy.nodes import RLS, Ridge

WEIGHTS, BIAS = np.array([[10.0], [-0.2], [7.0]]), 12.0


def error(node, x):
    """Root of the mean square, against the function without noise."""
    return np.sqrt(((node.run(x) - (x[:, :3] @ WEIGHTS + BIAS)) ** 2).mean())


def ones(x):
    return np.c_[x, np.ones(len(x))]


for mean, size in ((0, 2_000), (2, 100), (2, 2_000), (2, 20_000)):
    random = np.random.default_rng(0)
    x, test = random.normal(mean, size=(size, 3)), random.normal(mean, size=(1_000, 3))
    y = x @ WEIGHTS + BIAS
    recursive, column, ridge = RLS(alpha=0.1), RLS(alpha=0.1, fit_bias=False), Ridge(ridge=0.1)
    recursive.partial_fit(x, y)
    column.partial_fit(ones(x), y)
    ridge.fit(x, y)
    errors = error(recursive, test), error(column, ones(test)), error(ridge, test)
    print(f"inputs of mean {mean}, {size} examples: error {{:.3f}}, with a column of ones {{:.3f}}, Ridge {{:.3f}};"
          f" weights {recursive.Wout.ravel().round(2)}, bias {recursive.bias[0]:.2f}".format(*errors))
    assert max(errors[1:]) < 0.05
    assert errors[0] < 0.1 if mean == 0 else errors[0] > 0.5
P
"$work/venv/bin/python" "$work/program.py"
