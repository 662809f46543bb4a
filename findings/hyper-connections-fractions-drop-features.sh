#!/usr/bin/env bash
# hyper-connections 0.4.11: with num_fracs above 1 (frac-connections) a new layer is no residual connection. With two
# fractions the branch is given the first half of the features twice and the second never. With four the residual
# changes too: a branch that adds nothing turns features 1 to 8 into 1 2 1 2 3 4 7 8, and 5 and 6 are gone. The matrix
# of connections is made with the columns of all inputs first, and split as if each fraction had its input and then its
# streams. With one fraction, which the same code takes, a new layer is branch plus residual, as README shows it.
# Fails if that changes.
set -euo pipefail
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 hyper-connections==0.4.11
cat > "$work/program.py" <<'P'
import torch
from hyper_connections import get_init_and_expand_reduce_stream_functions


def numbers(x):
    return [round(value) for value in x.flatten().tolist()]


x = torch.arange(1.0, 9.0).reshape(1, 1, 8)
same = numbers(x)
expected = {  # what the branch is given, and the residual of a branch that adds nothing
    (2, 1): (same, same),
    (1, 2): ([1, 2, 3, 4, 1, 2, 3, 4], same),
    (2, 2): ([1, 2, 3, 4, 1, 2, 3, 4], same),
    (1, 4): ([1, 2, 1, 2, 1, 2, 5, 6], [1, 2, 1, 2, 3, 4, 7, 8]),
}
for (streams, fractions), right in expected.items():
    make, expand, reduce = get_init_and_expand_reduce_stream_functions(streams, num_fracs=fractions, dim=8)
    with torch.no_grad():
        given, add = make(layer_index=0)(expand(x))
        after = reduce(add(torch.zeros_like(given))) / streams
    print(f"{streams} streams, {fractions} fractions: the branch is given {numbers(given)}, residual {numbers(after)}")
    assert (numbers(given), numbers(after)) == right
P
"$work/venv/bin/python" "$work/program.py"
